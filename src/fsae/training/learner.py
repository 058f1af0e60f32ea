"""What the loop knows of one autoencoder in training, however it is trained."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.record import ForwardRecord
from fsae.losses.objective import Objective
from fsae.training.dead_latents import DeadLatents
from fsae.training.reinitialisation import Reinitialisation
from fsae.training.settings import TrainerSettings

Trained = TypeVar("Trained", bound=Autoencoder)
Trainer = TypeVar("Trainer", bound=TrainerSettings)


class Learner(ABC, Generic[Trained, Trainer]):
    """An autoencoder, its objective, its dead latents, and sums of what it measured.

    Args:
        autoencoder: with weights in scaled units.
        objective: what is minimised.
        settings: how.
        scale: what raw activations are multiplied by before they come here.

    Attributes:
        started_over: latents that `start_over` drew anew.
    """

    # What people can do where numbers are not finite.
    remedy: ClassVar[str]

    def __init__(self, autoencoder: Trained, objective: Objective, settings: Trainer, scale: float):
        self.autoencoder, self.objective, self.settings, self.scale = autoencoder, objective, settings, scale
        self.dead = DeadLatents(autoencoder.d_sae, settings.dead_after).to(autoencoder.W_dec.device)
        self.started_over = 0
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def step(self, x: Tensor, step: int, targets: Tensor | None = None) -> ForwardRecord:
        """All that is done with one batch; returns what was last made of it. Waits for nothing.

        Args:
            x: (batch, d_in) scaled inputs.
            step: counts from 0.
            targets: (batch, d_in) what they shall be turned into, likewise scaled; None for themselves.
        """
        record = self.backward(x, step, targets)
        self.update(step)
        for _ in range(1, self.settings.updates_at(step)):
            record = self.backward(x, step, targets)
            self.update(step)
        self.finish(record, step)
        return record

    @abstractmethod
    def backward(self, x: Tensor, step: int, targets: Tensor | None = None) -> ForwardRecord:
        """What is found out about a batch: the gradients of its own objective."""

    @abstractmethod
    def update(self, step: int) -> None:
        """What follows from it is done."""

    @abstractmethod
    def finish(self, record: ForwardRecord, step: int) -> None:
        """After a batch's last update it is counted."""

    @abstractmethod
    def start_over(self, record: ForwardRecord, step: int, when: Reinitialisation) -> int:
        """Draw anew what is off its target where that is due; returns how many latents."""

    def read_interval(self) -> dict[str, float]:
        """Means over the steps since the last call; waits for the device, once.

        The list of dead latents is refreshed.
        """
        names = list(self._sums)
        sums = torch.stack([self._sums[name].double() for name in names]).tolist() if names else []
        means = {name: total / self._counts[name] for name, total in zip(names, sums, strict=True)}
        self._sums, self._counts = {}, {}
        self.dead.refresh()
        means["dead_share"] = self.dead.indices.numel() / self.autoencoder.d_sae
        return means

    def check_finite(self, step: int) -> None:
        """Raise ValueError where a loss since the last logging, or a weight, is not finite. Waits for the device."""
        found = {"loss": self._sums.get("loss"), **dict(self.autoencoder.named_parameters())}
        # Weights too: a gradient that is not finite spoils them a step before the loss shows it.
        bad = [name for name, tensor in found.items() if tensor is not None and not torch.isfinite(tensor).all()]
        if bad:
            raise ValueError(
                f"{', '.join(bad)} became infinite or NaN by step {step} (batches of {self.settings.batch_size}); "
                f"{self.remedy}; the last checkpoint is from before"
            )

    def _remember(self, scalars: dict[str, Tensor]) -> None:
        for name, value in scalars.items():
            known = self._sums.get(name)
            self._sums[name] = value.detach().clone() if known is None else known + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "autoencoder": self.autoencoder.state_dict(),
            "dead": self.dead.state_dict(),
            "dead_indices": self.dead.indices,
            "sums": self._sums,
            "counts": self._counts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.autoencoder.load_state_dict(state["autoencoder"])
        self.dead.load_state_dict(state["dead"])
        device = self.dead.tokens_since_fired.device
        self.dead.indices = state["dead_indices"].to(device)
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self._counts = dict(state["counts"])

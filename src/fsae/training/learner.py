"""The interface between the training loop and one autoencoder in training."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Factor
from fsae.autoencoders.record import ForwardRecord, PartnerCodes
from fsae.losses.objective import Objective
from fsae.losses.term import Moment
from fsae.seeds import generator_for
from fsae.sources.source import Partners
from fsae.training.dead_latents import DeadLatents
from fsae.training.resample import Reinitialisation
from fsae.training.settings import TrainerSettings

Trained = TypeVar("Trained", bound=Autoencoder)
Trainer = TypeVar("Trainer", bound=TrainerSettings)


class Learner(ABC, Generic[Trained, Trainer]):
    """An autoencoder in training, with its objective, its dead latents, and sums of measures.

    Args:
        autoencoder: with weights in scaled units.
        objective: the sum of terms.
        settings: of the training.
        scale: the factor by which raw targets were multiplied, or one per dimension.
        seed: of the random numbers that training draws.

    Attributes:
        generator: of these random numbers, on the CPU.
        reinitialised: the number of latents that `reinitialise` has resampled.
    """

    # The advice in the message about numbers that are not finite.
    remedy: ClassVar[str]

    def __init__(self, autoencoder: Trained, objective: Objective, settings: Trainer, scale: Factor, seed: int):
        self.autoencoder, self.objective, self.settings, self.scale = autoencoder, objective, settings, scale
        # Not the generator of the first weights: resampled weights would equal them.
        self.generator = generator_for(seed, "training")
        self.dead = DeadLatents(autoencoder.d_sae, settings.dead_after).to(autoencoder.W_dec.device)
        self.reinitialised = 0
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def step(
        self, x: Tensor, step: int, targets: Tensor | None = None, partners: Partners | None = None
    ) -> ForwardRecord:
        """Train on one batch and return its last forward record. Waits for nothing.

        Args:
            x: (batch, d_in) scaled inputs.
            step: counts from 0.
            targets: (batch, d_out) scaled targets of the reconstruction; None for the inputs themselves.
            partners: scaled, of the inputs; needed only if a term compares them.
        """
        record = self.backward(x, step, targets, partners)
        self.update(step)
        for _ in range(1, self.settings.updates_at(step)):
            record = self.backward(x, step, targets, partners)
            self.update(step)
        self.finish(record, step)
        return record

    @abstractmethod
    def backward(
        self, x: Tensor, step: int, targets: Tensor | None = None, partners: Partners | None = None
    ) -> ForwardRecord:
        """Compute on a batch all that `update` needs, such as gradients; a coupling may add to these."""

    @abstractmethod
    def update(self, step: int) -> None:
        """Apply one update."""

    @abstractmethod
    def finish(self, record: ForwardRecord, step: int) -> None:
        """Count a batch after its last update."""

    @abstractmethod
    def reinitialise(self, record: ForwardRecord, step: int, when: Reinitialisation) -> int:
        """Resample the latents that are off their target, if due; return the number of these latents."""

    def with_partners(self, record: ForwardRecord, partners: Partners | None, sparse: bool) -> ForwardRecord:
        """Return the record with the codes of the partners, if a term compares them."""
        if not self.objective.compares_partners:
            return record
        assert partners is not None
        # Not by `forward`: a threshold that follows the batches is that of the samples themselves.
        codes = self.autoencoder.encode(partners.inputs, sparse).codes
        return replace(record, partners=PartnerCodes(codes, partners.there))

    def moment(self, step: int) -> Moment:
        """Return what the terms of a step's losses need in addition to the record."""
        return Moment(self.dead.indices, step, self.settings.steps, self.generator)

    def read_interval(self) -> dict[str, float]:
        """Return means over the steps since the last call, and refresh the dead latents; waits for the device, once."""
        names = list(self._sums)
        sums = torch.stack([self._sums[name].double() for name in names]).tolist() if names else []
        means = {name: total / self._counts[name] for name, total in zip(names, sums, strict=True)}
        self._sums, self._counts = {}, {}
        self.dead.refresh()
        means["dead_share"] = self.dead.indices.numel() / self.autoencoder.d_sae
        return means

    def check_finite(self, step: int) -> None:
        """Raise ValueError if a loss since the last logging, or a weight, is not finite. Waits for the device."""
        found = {"loss": self._sums.get("loss"), **dict(self.autoencoder.named_parameters())}
        # Weights, too: a gradient that is not finite spoils them a step before the loss shows it.
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
            "generator": self.generator.get_state(),
            "objective": self.objective.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.autoencoder.load_state_dict(state["autoencoder"])
        self.dead.load_state_dict(state["dead"])
        device = self.dead.samples_since_fired.device
        self.dead.indices = state["dead_indices"].to(device)
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self._counts = dict(state["counts"])
        self.generator.set_state(state["generator"])
        self.objective.load_state_dict(state["objective"], device)

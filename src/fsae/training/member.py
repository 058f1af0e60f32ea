"""One autoencoder in training, with everything that is its own."""

from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.base import Autoencoder, DecoderNorm, ForwardRecord
from fsae.losses.objective import Objective
from fsae.losses.term import Moment
from fsae.training.dead_latents import DeadLatents, resample
from fsae.training.measures import batch_measures
from fsae.training.reinitialisation import Reinitialisation, Scope, start_over
from fsae.training.settings import AdamSettings, Precision

# Share of codes that are on at which a step with sparse products takes as long as one with dense products, on a CPU
# (`benchmarks.crossover` finds it): all widths, batches and architectures tried agree within a third.
CROSSOVER = {Precision.fp32: 0.2, Precision.bf16: 0.09}
# Two bounds, so that a density between them does not make a run go to and fro (the numbers are the same either way).
SPARSE_BELOW = 0.6
DENSE_ABOVE = 0.9


class Member:
    """An autoencoder, its objective, optimiser, dead latents, generator, and sums of what it measured.

    Args:
        autoencoder: with weights in scaled units.
        objective: what is minimised.
        settings: how.
        scale: what raw activations are multiplied by before they come here.
        seed: of draws made in training.
    """

    def __init__(self, autoencoder: Autoencoder, objective: Objective, settings: AdamSettings, scale: float, seed: int):
        self.autoencoder, self.objective, self.settings, self.scale = autoencoder, objective, settings, scale
        # Shares the weights. Sparse batches are no use to it: each has another number of codes.
        self._dense_forward = torch.compile(autoencoder) if settings.compile else autoencoder
        device = autoencoder.W_dec.device
        self.dead = DeadLatents(autoencoder.d_sae, settings.dead_after).to(device)
        self.optimiser = torch.optim.Adam(
            autoencoder.parameters(), lr=settings.lr, betas=(settings.beta1, settings.beta2), fused=True
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.resampled = self.started_over = 0
        # How often each latent was on since rates were last looked at, and in how many samples.
        self._fired, self._samples = torch.zeros(autoencoder.d_sae, dtype=torch.long, device=device), 0
        self.sparse = False
        self._choose_products(autoencoder.settings.first_density(autoencoder.d_in))
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def step(self, x: Tensor, step: int, targets: Tensor | None = None) -> None:
        """One optimiser step. Waits for nothing.

        Args:
            x: (batch, d_in) scaled inputs.
            step: counts from 0.
            targets: (batch, d_in) what they shall be turned into, likewise scaled; None for themselves.
        """
        self.update(self.backward(x, step, targets), step)

    def backward(self, x: Tensor, step: int, targets: Tensor | None = None) -> ForwardRecord:
        """The first half of a step: the gradients of its own objective."""
        settings, autoencoder = self.settings, self.autoencoder
        with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.precision is Precision.bf16):
            record = (autoencoder if self.sparse else self._dense_forward)(x, self.sparse, targets)
        last_of_interval = settings.logs_after(step)
        losses = self.objective(record, Moment(self.dead.indices), step / settings.steps, measure_all=last_of_interval)
        losses.total.backward()
        self._remember(losses.parts)
        return record

    def update(self, record: ForwardRecord, step: int) -> None:
        """The second half: what the gradients say is done, and the batch is counted."""
        settings, autoencoder = self.settings, self.autoencoder
        unit_norm = autoencoder.settings.decoder_norm is DecoderNorm.unit
        if unit_norm:
            autoencoder.project_decoder_gradient()
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), settings.clip_norm, foreach=True)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.lr_at(step)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if unit_norm:
            autoencoder.normalise_decoder()
        self.dead.update(record.codes)
        self._remember(batch_measures(record, self.scale))
        if self._resamples_after(step):
            self.resampled += resample(autoencoder, self.optimiser, self.dead, record, self.generator)

    def start_over(self, record: ForwardRecord, step: int, when: Reinitialisation) -> int:
        """Count a batch, and draw anew what is off its target where that is due; returns how many latents.

        Waits for the device where it is due.
        """
        if when.scope is Scope.none:
            return 0
        self._fired = self._fired + record.codes.firing_counts
        self._samples += record.codes.shape[0]
        if not when.looks_after(step, self.settings.steps):
            return 0
        target = when.target_rate or self.autoencoder.settings.first_density(self.autoencoder.d_in)
        which = when.off_target(self._fired, self._samples, target)
        self._fired, self._samples = torch.zeros_like(self._fired), 0
        count = int(which.sum())
        if count > 0:
            start_over(self.autoencoder, self.optimiser, self.dead, which, record.inputs, self.generator)
            self.started_over += count
        return count

    def read_interval(self) -> dict[str, float]:
        """Means over the steps since the last call; waits for the device, once.

        The list of dead latents is refreshed and the products are chosen anew by the density that was measured.
        """
        names = list(self._sums)
        sums = torch.stack([self._sums[name].double() for name in names]).tolist() if names else []
        means = {name: total / self._counts[name] for name, total in zip(names, sums, strict=True)}
        self._sums, self._counts = {}, {}
        self.dead.refresh()
        means["dead_share"] = self.dead.indices.numel() / self.autoencoder.d_sae
        if self.settings.resample_every is not None:
            means["resampled"] = float(self.resampled)
        if "l0" in means:
            self._choose_products(means["l0"] / self.autoencoder.d_sae)
        return means

    def check_finite(self, step: int) -> None:
        """Raise ValueError where a loss since the last logging, or a weight, is not finite. Waits for the device."""
        found = {"loss": self._sums.get("loss"), **dict(self.autoencoder.named_parameters())}
        # Weights too: a gradient that is not finite spoils them a step before the loss shows it.
        bad = [name for name, tensor in found.items() if tensor is not None and not torch.isfinite(tensor).all()]
        if bad:
            raise ValueError(
                f"{', '.join(bad)} became infinite or NaN by step {step} (batches of {self.settings.batch_size}); "
                "lower trainer.lr, raise trainer.warm_up or set trainer.clip_norm; the last checkpoint is from before"
            )

    def _choose_products(self, density: float) -> None:
        on_cpu = self.autoencoder.W_dec.device.type == "cpu"
        share = density / CROSSOVER[self.settings.precision]
        # On a GPU, finding codes whose number is not known makes every step wait for the device.
        if share < SPARSE_BELOW and (on_cpu or self.autoencoder.settings.fixed_k):
            self.sparse = True
        elif share > DENSE_ABOVE:
            self.sparse = False

    def _remember(self, scalars: dict[str, Tensor]) -> None:
        for name, value in scalars.items():
            known = self._sums.get(name)
            self._sums[name] = value.detach().clone() if known is None else known + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def _resamples_after(self, step: int) -> bool:
        every = self.settings.resample_every
        if every is None or step + 1 > 0.8 * self.settings.steps:
            return False
        seen = (step + 1) * self.settings.batch_size
        return seen // every > (seen - self.settings.batch_size) // every

    def state_dict(self) -> dict[str, Any]:
        return {
            "autoencoder": self.autoencoder.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "dead": self.dead.state_dict(),
            "dead_indices": self.dead.indices,
            "generator": self.generator.get_state(),
            "resampled": self.resampled,
            "started_over": self.started_over,
            "fired": self._fired,
            "samples": self._samples,
            "sparse": self.sparse,
            "sums": self._sums,
            "counts": self._counts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.autoencoder.load_state_dict(state["autoencoder"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.dead.load_state_dict(state["dead"])
        device = self.dead.tokens_since_fired.device
        self.dead.indices = state["dead_indices"].to(device)
        self.generator.set_state(state["generator"])
        self.resampled, self.started_over = state["resampled"], state["started_over"]
        self.sparse = state["sparse"]
        self._fired, self._samples = state["fired"].to(device), state["samples"]
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self._counts = dict(state["counts"])

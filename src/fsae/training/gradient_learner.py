"""Training by gradients: one autoencoder with its optimiser, dead latents and random generator."""

from statistics import mean
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Factor
from fsae.autoencoders.record import ForwardRecord
from fsae.autoencoders.settings import DecoderNorm
from fsae.losses.objective import Losses, Objective
from fsae.matching import unit_rows
from fsae.sources.source import Partners
from fsae.training.archetypes import Archetypes
from fsae.training.frozen import Frozen, freeze, keep_in_cone
from fsae.training.fused_adam import FusedAdam
from fsae.training.learner import Learner
from fsae.training.measures import batch_measures
from fsae.training.resample import Reinitialisation, Scope, forget_moments, reinitialise, resample
from fsae.training.settings import AdamSettings, Precision

# Share of codes at which a step with sparse products takes as long as one with dense products, on a CPU
# (`benchmarks.crossover` finds it): all tried widths, batch sizes and architectures agree within a third.
CROSSOVER = {Precision.fp32: 0.2, Precision.bf16: 0.09}
# Two bounds, so that a density between them does not make a run alternate (the numbers are the same either way).
SPARSE_BELOW = 0.6
DENSE_ABOVE = 0.9


class GradientLearner(Learner[SparseAutoencoder, AdamSettings]):
    """An autoencoder that Adam trains, with its objective, optimiser, dead latents, generator, and sums of measures.

    Args:
        autoencoder: with weights in scaled units.
        objective: the sum of terms to minimise.
        settings: of the training.
        scale: the factor by which raw targets were multiplied, or one per dimension.
        seed: of the random numbers that training draws.
    """

    remedy = "lower trainer.lr, raise trainer.warm_up or set trainer.clip_norm"

    def __init__(
        self, autoencoder: SparseAutoencoder, objective: Objective, settings: AdamSettings, scale: Factor, seed: int
    ):
        super().__init__(autoencoder, objective, settings, scale, seed)
        freeze(autoencoder, settings.frozen)
        # The axes of the cones in which decoder rows stay.
        soft = settings.frozen is Frozen.soft_decoder
        self._axes = unit_rows(autoencoder.W_dec.detach()) if soft else None
        distance = autoencoder.settings.archetype_distance
        self._archetypes = None if distance is None else Archetypes(autoencoder.W_dec, distance)
        # It shares the weights. Sparse batches are not compiled: the number of codes differs between them.
        self._dense_forward = torch.compile(autoencoder) if settings.compile else autoencoder
        device = autoencoder.W_dec.device
        # Without a gradient, which the archetypes take over, W_dec is not moved by the optimiser.
        self._trained = [*autoencoder.parameters(), *(self._archetypes.parameters() if self._archetypes else ())]
        self.optimiser = FusedAdam(
            self._trained,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
        )
        self.resampled = 0
        # How often each latent was on since its rate was last compared, and in how many samples.
        self._fired, self._samples = torch.zeros(autoencoder.d_sae, dtype=torch.long, device=device), 0
        self.sparse = False
        self._choose_products(autoencoder.settings.density(autoencoder.d_in, 0.0))

    def backward(
        self, x: Tensor, step: int, targets: Tensor | None = None, partners: Partners | None = None
    ) -> ForwardRecord:
        """Compute the gradients of the objective on a batch."""
        record, losses = self.forward(x, step, targets, partners)
        if self.settings.frozen is not Frozen.all:
            losses.total.backward()
        return record

    def forward(
        self, x: Tensor, step: int, targets: Tensor | None, partners: Partners | None = None
    ) -> tuple[ForwardRecord, Losses]:
        """Compute the forward record and the losses of a batch."""
        settings, autoencoder = self.settings, self.autoencoder
        autoencoder.progress = step / settings.steps
        with self.precision(x):
            record = (autoencoder if self.sparse else self._dense_forward)(x, self.sparse, targets)
            record = self.with_partners(record, partners, self.sparse)
        last_of_interval = settings.logs_after(step)
        losses = self.objective(record, self.moment(step), measure_all=last_of_interval)
        self._remember(losses.parts)
        return record, losses

    def precision(self, x: Tensor) -> torch.autocast:
        """Return the context that sets the type of products with x."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.settings.precision is Precision.bf16)

    def update(self, step: int) -> None:
        """Apply one update of the optimiser."""
        settings, autoencoder = self.settings, self.autoencoder
        if settings.frozen is Frozen.all:
            return
        autoencoder.mask_gradients()
        unit_norm = autoencoder.settings.decoder_norm is DecoderNorm.unit
        if unit_norm and not settings.frozen.fixes_decoder:
            autoencoder.project_decoder_gradient()
        if self._archetypes is not None:
            self._archetypes.take_gradient(autoencoder.W_dec)
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._trained, settings.clip_norm, foreach=True)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.lr_at(step)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self._archetypes is not None:
            self._archetypes.constrain(autoencoder.W_dec)
        autoencoder.mask_weights()
        if self._axes is not None:
            keep_in_cone(autoencoder.W_dec, self._axes)
        if unit_norm:
            autoencoder.normalise_decoder()
        if autoencoder.settings.align_encoder:
            autoencoder.align_encoder()

    def finish(self, record: ForwardRecord, step: int) -> None:
        """Count a batch after its last update, and resample dead latents if due."""
        self.dead.update(record.codes)
        self._remember(batch_measures(record, self.scale))
        if self._resamples_after(step):
            latents = resample(self.autoencoder, self.optimiser, self.dead, record, self.generator)
            self._place(latents)
            self.resampled += len(latents)

    def reinitialise(self, record: ForwardRecord, step: int, when: Reinitialisation) -> int:
        """Count a batch and, if due, resample the latents that are off the target; return the number of these latents.

        Waits for the device if due.
        """
        if when.scope is Scope.none:
            return 0
        self._fired = self._fired + record.codes.firing_counts
        self._samples += record.codes.shape[0]
        if not self._looks_after(step, when):
            return 0
        target = when.target_rate or self._mean_density(step)
        which = when.off_target(self._fired, self._samples, target)
        self._fired, self._samples = torch.zeros_like(self._fired), 0
        count = int(which.sum())
        if count > 0:
            targets = None if self.autoencoder.ends.same else record.targets
            reinitialise(self.autoencoder, self.optimiser, self.dead, which, record.inputs, self.generator, targets)
            self._place(which.nonzero().squeeze(1))
            self.reinitialised += count
        return count

    def _mean_density(self, step: int) -> float:
        """Return the mean share of codes that should have been on since rates were last compared; k may fall."""
        autoencoder, settings = self.autoencoder, self.settings
        steps = range(step + 1 - self._samples // settings.batch_size, step + 1)
        return mean(autoencoder.settings.density(autoencoder.d_in, at / settings.steps) for at in steps)

    def _place(self, latents: Tensor) -> None:
        """Bring the new decoder rows of latents to where they may be; if all are new, they are the archetypes."""
        if self._archetypes is None:
            return
        if len(latents) == self.autoencoder.d_sae:
            self._archetypes.begin(self.autoencoder.W_dec)
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimiser.state[self._archetypes.log_scale][moment].zero_()
        else:
            self._archetypes.place(latents, self.autoencoder.W_dec)
        for part in (self._archetypes.mixture, self._archetypes.offset):
            forget_moments(self.optimiser, part, 0, latents)

    def read_interval(self) -> dict[str, float]:
        """Return means over the steps since the last call; waits for the device, once.

        Refreshes the dead latents and chooses dense or sparse products by the measured density.
        """
        means = super().read_interval()
        means["lr"] = self.optimiser.param_groups[0]["lr"]
        if self.settings.resample_every is not None:
            means["resampled"] = float(self.resampled)
        if "l0" in means:
            self._choose_products(means["l0"] / self.autoencoder.d_sae)
        return means

    def _looks_after(self, step: int, when: Reinitialisation) -> bool:
        return when.looks_after(step, self.settings.steps)

    def _choose_products(self, density: float) -> None:
        on_cpu = self.autoencoder.W_dec.device.type == "cpu"
        share = density / CROSSOVER[self.settings.precision]
        # On a GPU, codes of an unknown number make every step wait for the device.
        if share < SPARSE_BELOW and (on_cpu or self.autoencoder.settings.fixed_k):
            self.sparse = True
        elif share > DENSE_ABOVE:
            self.sparse = False

    def _resamples_after(self, step: int) -> bool:
        every = self.settings.resample_every
        if every is None or step + 1 > 0.8 * self.settings.steps:
            return False
        seen = (step + 1) * self.settings.batch_size
        return seen // every > (seen - self.settings.batch_size) // every

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "optimiser": self.optimiser.state_dict(),
            "resampled": self.resampled,
            "reinitialised": self.reinitialised,
            "fired": self._fired,
            "samples": self._samples,
            "sparse": self.sparse,
            "axes": self._axes,
            "archetypes": None if self._archetypes is None else self._archetypes.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimiser.load_state_dict(state["optimiser"])
        self.resampled, self.reinitialised = state["resampled"], state["reinitialised"]
        self.sparse = state["sparse"]
        self._fired, self._samples = state["fired"].to(self._fired.device), state["samples"]
        if self._axes is not None:
            self._axes = state["axes"].to(self._fired.device)
        if self._archetypes is not None:
            self._archetypes.load_state_dict(state["archetypes"])

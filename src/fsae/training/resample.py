"""New weights for latents: for dead ones (resampling), and for those that fire far from a target rate (MFR)."""

from dataclasses import dataclass, field
from enum import Enum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.record import ForwardRecord
from fsae.ranges import COUNT, POSITIVE, SHARE, SOME_SHARE, Ranged, between
from fsae.training.dead_latents import DeadLatents


class Scope(Enum):
    """The part of an autoencoder that re-initialisation resamples.

    It is no latent; the latents that are off the target; or all latents, if their mean deviation is too large.
    """

    none = "none"
    latents = "latents"
    autoencoder = "autoencoder"


@dataclass(frozen=True, kw_only=True)
class Reinitialisation(Ranged, group="population.reinitialise"):
    """Re-initialisation by activation rates (Marks et al. 2024, arXiv 2411.01220).

    The deviation of a latent is (|r - target| / target)^power, with r the share of samples on which it is on. The
    deviation of a latent that is never on is 1: with the published threshold, 2.5, only latents that are on too often
    count.

    Attributes:
        scope: the part that is resampled.
        target_rate: of activation; null for k / d_sae, which only architectures with a k have. Where k falls
            (`arch.k_start`), it is the mean k of the compared steps.
        power: of the relative deviation.
        threshold: of the deviation, of one latent or of the mean over all.
        every: batches over which rates are measured, and after which they are compared with the target. A rate is only
            as good as the number of times that a latent at the target is on meanwhile: with ten, chance alone makes it
            deviate by a third.
        until: share of training after which nothing is resampled, because it would have no time to learn.
    """

    scope: Scope = Scope.none
    target_rate: float | None = field(default=None, metadata=SOME_SHARE)
    power: float = field(default=3.0, metadata=between(above=0, most=100))
    threshold: float = field(default=2.5, metadata=POSITIVE)
    every: int = field(default=1, metadata=COUNT)
    until: float = field(default=0.5, metadata=SHARE)

    def looks_after(self, step: int, steps: int) -> bool:
        """Return whether rates are compared after a step, counted from 0, of a training of `steps`."""
        return self.scope is not Scope.none and (step + 1) % self.every == 0 and step + 1 <= self.until * steps

    def off_target(
        self, firing_counts: Int[Tensor, " d_sae"], samples: int, target_rate: float
    ) -> Bool[Tensor, " d_sae"]:
        """Return which latents must be resampled, given how often each was on in a number of samples."""
        deviations = self.deviations(firing_counts, samples, target_rate)
        if self.scope is Scope.latents:
            return deviations > self.threshold
        return (deviations.mean() > self.threshold).expand_as(deviations)

    def deviations(
        self, firing_counts: Int[Tensor, " d_sae"], samples: int, target_rate: float
    ) -> Float[Tensor, " d_sae"]:
        """Return the deviation of each latent."""
        rates = firing_counts / samples
        return ((rates - target_rate).abs() / target_rate) ** self.power


@torch.no_grad()
def resample(
    autoencoder: SparseAutoencoder,
    optimiser: torch.optim.Optimizer,
    dead: DeadLatents,
    record: ForwardRecord,
    generator: torch.Generator,
) -> Int[Tensor, " latents"]:
    """Point dead latents at the samples with the worst reconstruction (Bricken et al. 2023, "Neuron Resampling").

    Each dead latent takes a sample of the batch, drawn with probability proportional to its squared loss. Its decoder
    row gets the direction of the sample's target, its encoder column the direction of the sample; see
    `SparseAutoencoder.resample`. Between two layouts the encoder reads differences from the mean of the batch.

    Returns:
        The resampled latents.
    """
    dead.refresh()
    latents = dead.indices
    if len(latents) == 0:
        return latents
    alive = torch.ones(autoencoder.d_sae, dtype=torch.bool, device=latents.device)
    alive[latents] = False
    losses = record.error.square().sum(1)
    chosen = torch.multinomial(losses.square().cpu() + 1e-12, len(latents), replacement=True, generator=generator)
    chosen = chosen.to(record.inputs.device)
    # Between two layouts b_dec is no point of the inputs: with biases of zero, latents that point to their mean would
    # be on for every sample.
    mean = None if autoencoder.ends.same else record.inputs.mean(0)
    inputs = record.inputs[chosen]
    # The decoder writes the targets, which differ from the inputs if these are noisy.
    read, written = (
        torch.nn.functional.normalize(vectors, dim=1, eps=1e-8)
        for vectors in (
            autoencoder.encoder_input(inputs) if mean is None else inputs - mean,
            autoencoder.written_direction(record.wanted_of_codes[chosen]),
        )
    )
    autoencoder.resample(latents, alive, read, written)
    if mean is not None:
        products = (mean @ autoencoder.W_enc).index_select(0, latents)
        autoencoder.raise_pre_activations(torch.zeros_like(autoencoder.W_enc[0]).index_add(0, latents, -products))
    _forget(autoencoder, optimiser, dead, latents)
    return latents


@torch.no_grad()
def reinitialise(
    autoencoder: SparseAutoencoder,
    optimiser: torch.optim.Optimizer,
    dead: DeadLatents,
    which: Bool[Tensor, " d_sae"],
    vectors: Float[Tensor, "vectors d_in"],
    generator: torch.Generator,
    targets: Float[Tensor, "vectors d_out"] | None = None,
) -> None:
    """Give latents fresh weights, as at the start of training; if `which` names all latents, everything becomes fresh.

    Args:
        which: latents.
        vectors: scaled, to set biases by.
        generator: of the new weights.
        targets: scaled, of the vectors; None if they are their own.
    """
    fresh = autoencoder.settings.build(autoencoder.ends, generator).to(autoencoder.W_dec)
    latents = which.nonzero().squeeze(1)
    whole = len(latents) == autoencoder.d_sae
    # If b_dec stays, the biases of single latents must go with it.
    fresh.initialise(
        lambda: vectors,
        scale=1.0,
        targets=None if targets is None else lambda: targets,
        centre=None if whole else autoencoder.b_dec,
    )
    if whole:
        autoencoder.load_state_dict(fresh.state_dict())
        for state in optimiser.state.values():
            for value in state.values():
                value.zero_()
    else:
        autoencoder.copy_latents(fresh, latents)
    _forget(autoencoder, optimiser, dead, latents)


def _forget(
    autoencoder: SparseAutoencoder,
    optimiser: torch.optim.Optimizer,
    dead: DeadLatents,
    latents: Int[Tensor, " latents"],
) -> None:
    """Set the moments and the dead counters of resampled latents to zero."""
    for name, parameter in autoencoder.named_parameters():
        if (axis := autoencoder.latent_axis(name)) is not None:
            forget_moments(optimiser, parameter, axis, latents)
    dead.samples_since_fired[latents] = 0
    dead.refresh()


def forget_moments(
    optimiser: torch.optim.Optimizer, parameter: nn.Parameter, axis: int, latents: Int[Tensor, " latents"]
) -> None:
    """Set the moments of latents to zero, which a parameter has along an axis."""
    for moment in ("exp_avg", "exp_avg_sq"):
        state = optimiser.state[parameter].get(moment)
        if state is not None:
            state.index_fill_(axis, latents, 0.0)

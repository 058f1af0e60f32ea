"""Starting over what fires far from how often it should: single latents, or a whole autoencoder (MFR)."""

from dataclasses import dataclass, field
from enum import Enum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.initialisation import initialise_from
from fsae.ranges import COUNT, POSITIVE, SHARE, SOME_SHARE, Ranged, between
from fsae.training.dead_latents import DeadLatents


class Scope(Enum):
    """What is drawn anew: nothing; the latents that are off the target; all of the autoencoder, where the mean over its
    latents is."""

    none = "none"
    latents = "latents"
    autoencoder = "autoencoder"


@dataclass(frozen=True, kw_only=True)
class Reinitialisation(Ranged, group="population.reinitialise"):
    """Re-initialisation by activation rates (Marks et al. 2024, arXiv 2411.01220).

    A latent's deviation is (|r - target| / target)^power, r the share of samples it is on in. That of one that is never
    on is 1: with the published threshold, 2.5, only latents that are on too often count.

    Attributes:
        scope: what is drawn anew.
        target_rate: of activation; null for k / d_sae, which only architectures with a k have.
        power: of the relative deviation.
        threshold: of the deviation, a latent's own or the mean over all.
        every: batches over which rates are taken, and after which they are looked at. A rate is only as good as the
            number of times that a latent at the target fires meanwhile: with ten, chance alone deviates by a third.
        until: share of training after which nothing starts over: it would have no time to learn.
    """

    scope: Scope = Scope.none
    target_rate: float | None = field(default=None, metadata=SOME_SHARE)
    power: float = field(default=3.0, metadata=between(above=0, most=100))
    threshold: float = field(default=2.5, metadata=POSITIVE)
    every: int = field(default=1, metadata=COUNT)
    until: float = field(default=0.5, metadata=SHARE)

    def looks_after(self, step: int, steps: int) -> bool:
        """Whether rates are looked at after a step, counted from 0, of so many."""
        return self.scope is not Scope.none and (step + 1) % self.every == 0 and step + 1 <= self.until * steps

    def off_target(
        self, firing_counts: Int[Tensor, " d_sae"], samples: int, target_rate: float
    ) -> Bool[Tensor, " d_sae"]:
        """Which latents are to be drawn anew, having fired so often in so many samples."""
        deviations = self.deviations(firing_counts, samples, target_rate)
        if self.scope is Scope.latents:
            return deviations > self.threshold
        return (deviations.mean() > self.threshold).expand_as(deviations)

    def deviations(
        self, firing_counts: Int[Tensor, " d_sae"], samples: int, target_rate: float
    ) -> Float[Tensor, " d_sae"]:
        """Each latent's."""
        rates = firing_counts / samples
        return ((rates - target_rate).abs() / target_rate) ** self.power


@torch.no_grad()
def start_over(
    autoencoder: SparseAutoencoder,
    optimiser: torch.optim.Optimizer,
    dead: DeadLatents,
    which: Bool[Tensor, " d_sae"],
    vectors: Float[Tensor, "vectors d_in"],
    generator: torch.Generator,
) -> None:
    """Draw latents anew, or everything where all of them are meant; the optimiser forgets what it knew of them.

    Args:
        which: latents.
        vectors: scaled, to set biases by.
        generator: of the new weights.
    """
    fresh = autoencoder.settings.build(autoencoder.d_in, generator).to(autoencoder.W_dec)
    latents = which.nonzero().squeeze(1)
    whole = len(latents) == autoencoder.d_sae
    # Single latents get the biases that go with the centre that stays.
    initialise_from(fresh, vectors, scale=1.0, centre=None if whole else autoencoder.b_dec)
    if whole:
        autoencoder.load_state_dict(fresh.state_dict())
        for state in optimiser.state.values():
            for value in state.values():
                value.zero_()
    else:
        for name, parameter in autoencoder.named_parameters():
            if name != "b_dec":
                # The latents' axis is the last one of W_enc, and the first one of all others.
                axis = 1 if name == "W_enc" else 0
                parameter.index_copy_(axis, latents, fresh.get_parameter(name).index_select(axis, latents))
                for moment in ("exp_avg", "exp_avg_sq"):
                    if moment in optimiser.state[parameter]:
                        optimiser.state[parameter][moment].index_fill_(axis, latents, 0.0)
    dead.tokens_since_fired[latents] = 0
    dead.refresh()

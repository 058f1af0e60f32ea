"""What an autoencoder starts from besides random directions: statistics of the first activations."""

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.gated import Gated
from fsae.autoencoders.jumprelu import JumpReLU
from fsae.autoencoders.settings import BiasInit, RectifiedSettings

# Statistics of this many vectors are as good as those of all, and take about a second.
SAMPLE = 8192
LATENTS_AT_ONCE = 1024
ITERATIONS = 50


@torch.no_grad()
def initialise_from(
    autoencoder: SparseAutoencoder,
    vectors: Float[Tensor, "vectors d_in"],
    scale: float,
    centre: Float[Tensor, " d_in"] | None = None,
) -> None:
    """Set the biases as `arch.b_dec_init` and `arch.init_density` say.

    Args:
        autoencoder: with fresh weights.
        vectors: raw vectors of the training part.
        scale: what training multiplies them by.
        centre: takes the place of what `arch.b_dec_init` would find.
    """
    sample = vectors[:: max(1, len(vectors) // SAMPLE)].float() * scale
    settings = autoencoder.settings
    if centre is not None:
        autoencoder.b_dec.copy_(centre)
    elif settings.b_dec_init is BiasInit.mean:
        autoencoder.b_dec.copy_(sample.mean(0))
    elif settings.b_dec_init is BiasInit.geometric_median:
        autoencoder.b_dec.copy_(geometric_median(sample))
    if isinstance(settings, RectifiedSettings) and settings.init_density is not None:
        _set_density(autoencoder, sample, settings.init_density)


def _set_density(autoencoder: SparseAutoencoder, vectors: Tensor, density: float) -> None:
    """Set each latent's bias to where a share `density` of the vectors switches it on."""
    bias = autoencoder.get_parameter("b_gate" if isinstance(autoencoder, Gated) else "b_enc")
    inputs = autoencoder.encoder_input(vectors)
    kept = max(1, round((1 - density) * len(vectors)))
    for begin in range(0, autoencoder.d_sae, LATENTS_AT_ONCE):
        latents = slice(begin, begin + LATENTS_AT_ONCE)
        products = (inputs @ autoencoder.W_enc[:, latents]).T
        bias[latents] = -products.kthvalue(kept, dim=1).values
    if isinstance(autoencoder, JumpReLU):
        bias += autoencoder.threshold


def geometric_median(vectors: Float[Tensor, "vectors d_in"]) -> Float[Tensor, " d_in"]:
    """The point with the least sum of distances, by Weiszfeld's iteration from the mean."""
    median = vectors.mean(0)
    for _ in range(ITERATIONS):
        weights = 1 / (vectors - median).norm(dim=1).clamp_min(1e-8)
        nearer = (vectors * weights.unsqueeze(1)).sum(0) / weights.sum()
        moved = (nearer - median).norm()
        median = nearer
        if moved <= 1e-6 * median.norm():
            break
    return median

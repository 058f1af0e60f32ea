"""Where a decoder's bias starts: a centre of the first activations."""

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.base import Autoencoder, BiasInit

# The geometric median of this many vectors is as good as that of all, and takes a fraction of a second.
SAMPLE = 16_384
ITERATIONS = 50


@torch.no_grad()
def centre_decoder_bias(autoencoder: Autoencoder, vectors: Float[Tensor, "vectors d_in"], scale: float) -> None:
    """Set b_dec as `arch.b_dec_init` says, from raw vectors and the factor that training multiplies them by."""
    kind = autoencoder.settings.b_dec_init
    if kind is BiasInit.zeros:
        return
    sample = vectors[:: max(1, len(vectors) // SAMPLE)].float() * scale
    autoencoder.b_dec.copy_(sample.mean(0) if kind is BiasInit.mean else geometric_median(sample))


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

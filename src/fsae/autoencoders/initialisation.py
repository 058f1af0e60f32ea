"""Statistics of the first activations, from which an autoencoder's biases start."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

# Statistics of this many vectors are as good as those of all, and take about a second.
SAMPLE = 8192
LATENTS_AT_ONCE = 1024
ITERATIONS = 50


def thinned(vectors: Float[Tensor, "vectors d_in"]) -> Float[Tensor, "some d_in"]:
    """Return evenly spaced vectors, as many as statistics need."""
    return vectors[:: max(1, len(vectors) // SAMPLE)]


def levels(
    inputs: Float[Tensor, "vectors d_in"], W_enc: Float[Tensor, "d_in d_sae"], density: float
) -> Iterator[tuple[slice, Float[Tensor, " latents"]]]:
    """Yield latents, and for each the product with its encoder column that a share `density` of the inputs exceeds."""
    kept = max(1, round((1 - density) * len(inputs)))
    for begin in range(0, W_enc.shape[1], LATENTS_AT_ONCE):
        latents = slice(begin, begin + LATENTS_AT_ONCE)
        yield latents, (inputs @ W_enc[:, latents]).T.kthvalue(kept, dim=1).values


def geometric_median(vectors: Float[Tensor, "vectors d_in"]) -> Float[Tensor, " d_in"]:
    """Find the point with the smallest sum of distances, by Weiszfeld's iteration from the mean."""
    median = vectors.mean(0)
    for _ in range(ITERATIONS):
        weights = 1 / (vectors - median).norm(dim=1).clamp_min(1e-8)
        nearer = (vectors * weights.unsqueeze(1)).sum(0) / weights.sum()
        moved = (nearer - median).norm()
        median = nearer
        if moved <= 1e-6 * median.norm():
            break
    return median

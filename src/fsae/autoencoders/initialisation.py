"""The first vectors, and what an autoencoder's weights start from: their statistics, clusters and components."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.autoencoders.layout import Factor
from fsae.autoencoders.settings import DecoderInit, SparseAutoencoderSettings
from fsae.seeds import generator_for

# Statistics of this many vectors are as good as those of all, and take about a second.
SAMPLE = 8192
LATENTS_AT_ONCE = 1024
# Vectors whose reconstructions decide the size of the first codes.
SCALED_BY = 1024
ITERATIONS = 50
# Vectors per centroid of k-means, vectors per step, and rounds in which the first centroids are drawn.
PER_CENTROID = 16
CLUSTERED_AT_ONCE = 4096
ROUNDS = 8


@dataclass(frozen=True, eq=False)
class FirstVectors:
    """The vectors from which weights start, in the unit of training.

    Attributes:
        raw: returns raw inputs of the training part.
        scale: the factor by which training multiplies them.
        raw_targets: returns their raw targets; None if the inputs are their own targets.
        target_scale: the factor by which training multiplies the targets, if there are any.
        mlp: the MLP that makes raw targets of raw inputs, if there is one.
    """

    raw: Callable[[], Float[Tensor, "vectors d_in"]]
    scale: Factor
    raw_targets: Callable[[], Float[Tensor, "vectors d_out"]] | None
    target_scale: Factor
    mlp: Callable[[Float[Tensor, "batch d_in"]], Float[Tensor, "batch d_out"]] | None = None

    def inputs(self, count: int = SAMPLE) -> Float[Tensor, "some d_in"]:
        """Return evenly spaced inputs, at least `count` if there are as many; the default is what statistics need."""
        return _thinned(self.raw(), count).float() * self.scale

    def targets(self, count: int = SAMPLE) -> Float[Tensor, "some d_out"]:
        """Return the targets of `inputs(count)`."""
        if self.raw_targets is None:
            return self.inputs(count)
        return _thinned(self.raw_targets(), count).float() * self.target_scale

    def written_along(self, W_enc: Float[Tensor, "d_in d_sae"]) -> Float[Tensor, "d_sae d_out"]:
        """Return what the MLP writes if its input moves from the mean along each column, minus the mean of these.

        The input moves by the root of the mean squared distance of inputs from their mean.
        """
        assert self.mlp is not None
        inputs = self.inputs()
        mean = inputs.mean(0)
        distance = (inputs - mean).square().sum(1).mean().sqrt()
        moved = mean + distance * torch.nn.functional.normalize(W_enc.T, dim=1)
        parts = [self.mlp(part / self.scale).float() * self.target_scale for part in moved.split(LATENTS_AT_ONCE)]
        written = torch.cat(parts)
        return written - written.mean(0)


@dataclass(frozen=True, eq=False)
class FirstDecoder:
    """A decoder that starts from data.

    Attributes:
        rows: of any norm.
        read: directions of the encoder's columns, if they belong to the rows and are not their transpose; a column of
            zeros has none.
    """

    rows: Float[Tensor, "d_sae d_out"]
    read: Float[Tensor, "d_in d_sae"] | None = None


def first_decoder(
    settings: SparseAutoencoderSettings, first: FirstVectors, W_enc: Tensor, W_dec: Tensor, b_dec: Tensor, seed: int
) -> FirstDecoder | None:
    """Return the decoder that `arch.decoder_init` asks for; None for the one that was drawn.

    Args:
        settings: of the architecture.
        first: the first vectors.
        W_enc: (d_in, d_sae) the encoder that was drawn.
        W_dec: (d_sae, d_out) the decoder that was drawn.
        b_dec: (d_out,) its start.
        seed: of what is drawn.

    Raises:
        ValueError: there are too few vectors.
    """
    d_sae, d_out = W_dec.shape
    match settings.decoder_init:
        case DecoderInit.random:
            return None
        case DecoderInit.zeros:
            return FirstDecoder(torch.zeros_like(W_dec))
        case DecoderInit.active_subspace:
            rank = settings.active_rank or max(1, d_out // 2)
            coefficients = torch.randn(d_sae, rank, generator=generator_for(seed, "decoder")).to(W_dec)
            return FirstDecoder(coefficients @ principal_components(first.targets(), rank).T)
        case DecoderInit.mlp:
            return FirstDecoder(first.written_along(W_enc))
        case DecoderInit.kmeans:
            count = max(SAMPLE, PER_CENTROID * d_sae)
            targets = first.targets(count)
            centres = centroids(targets, d_sae, seed if settings.kmeans_seed is None else settings.kmeans_seed)
            read = None
            if first.raw_targets is not None:
                read = cluster_directions(first.inputs(count), nearest(targets, centres), d_sae)
            return FirstDecoder(centres - b_dec, read)


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


def principal_components(vectors: Float[Tensor, "vectors d"], rank: int) -> Float[Tensor, "d rank"]:
    """Return the leading principal components of vectors, as orthonormal columns."""
    centred = (vectors - vectors.mean(0)).double()
    # Eigenvalues are in ascending order.
    leading = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -rank:].flip(1)
    return leading.to(vectors.dtype)


def centroids(vectors: Float[Tensor, "vectors d"], count: int, seed: int) -> Float[Tensor, "count d"]:
    """Return the centroids of k-means by mini-batches (Sculley 2010), after two passes over the vectors.

    As in `arch=kmeans`, a centroid with very few vectors is placed at another one in the first half of the steps.

    Args:
        vectors: in any order.
        count: of centroids.
        seed: of the first centroids, and of those that are placed elsewhere.

    Raises:
        ValueError: there are fewer vectors than centroids.
    """
    # Slow to import.
    from sklearn.cluster import MiniBatchKMeans

    if len(vectors) < count:
        raise ValueError(
            f"arch.decoder_init=kmeans needs a vector for each of {count} latents, and there are {len(vectors)} at the "
            "beginning; raise source.shard_tokens and source.tokens, or lower arch.d_sae"
        )
    # The first step needs a vector for each centroid.
    batches = vectors.cpu().tensor_split(max(1, len(vectors) // max(CLUSTERED_AT_ONCE, count)))
    first = spread_out(_thinned(vectors, 3 * count), count, torch.Generator().manual_seed(seed)).cpu().numpy()
    # The stubs name the types of the defaults alone.
    given: dict[str, Any] = {"init": first, "n_init": 1}
    kmeans = MiniBatchKMeans(count, **given, random_state=seed % 2**32, compute_labels=False)
    for ratio in (kmeans.reassignment_ratio, 0.0):
        kmeans.reassignment_ratio = ratio
        for batch in batches:
            kmeans.partial_fit(batch.numpy())
    return torch.from_numpy(kmeans.cluster_centers_).to(vectors)


def spread_out(vectors: Float[Tensor, "vectors d"], count: int, generator: torch.Generator) -> Float[Tensor, "count d"]:
    """Draw vectors that are far apart, as k-means|| does (Bahmani et al. 2012).

    In each of a few rounds, probabilities are proportional to the squared distances from the vectors of earlier rounds.
    scikit-learn's k-means++ takes one vector per round, and minutes for some thousand.
    """
    squares = vectors.new_ones(len(vectors))
    drawn: list[Tensor] = []
    for number, some in enumerate(torch.arange(count).tensor_split(min(count, ROUNDS))):
        weights = squares.double().cpu()
        # Copies of one vector may be all that is left.
        rows = torch.multinomial(weights.clamp_min(1e-12 * weights.mean() + 1e-30), len(some), generator=generator)
        drawn.append(vectors[rows.to(vectors.device)])
        near = torch.cat([torch.cdist(part, drawn[-1]).amin(1) for part in vectors.split(CLUSTERED_AT_ONCE)]).square()
        squares = near if number == 0 else torch.minimum(squares, near)
    return torch.cat(drawn)


def nearest(vectors: Float[Tensor, "vectors d"], centres: Float[Tensor, "count d"]) -> Int[Tensor, " vectors"]:
    """Return the index of the centre that is nearest to each vector."""
    biases = centres.square().sum(1) / 2
    return torch.cat([(some @ centres.T - biases).argmax(1) for some in vectors.split(CLUSTERED_AT_ONCE)])


def cluster_directions(
    vectors: Float[Tensor, "vectors d"], clusters: Int[Tensor, " vectors"], count: int
) -> Float[Tensor, "d count"]:
    """Return the sum over each cluster of the differences from the mean of all vectors; zeros for an empty cluster."""
    sums = vectors.new_zeros(count, vectors.shape[1])
    return sums.index_add(0, clusters, vectors - vectors.mean(0)).T


def _thinned(vectors: Float[Tensor, "vectors d"], count: int) -> Float[Tensor, "some d"]:
    return vectors[:: max(1, len(vectors) // count)]

"""Weights that start from data."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.initialisation import centroids, principal_components
from fsae.autoencoders.layout import Ends, Layout, blocks_across_layers
from fsae.autoencoders.settings import BiasInit, DecoderInit, DecoderNorm, EncoderInit, RectifiedSettings
from tests.architectures import ARCHITECTURES, each_architecture, each_with, samples, settings_of

TWO = Layout((("a", 5), ("b", 5)))
BETWEEN = Ends(input=Layout.of(5, "a"), target=Layout.of(4, "b"))
CROSSCODER = Ends(input=TWO, target=TWO)


def clustered(d: int = 5, clusters: int = 14, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Forty samples of each cluster in a random order, and the means of the clusters."""
    centres = 5 * samples(clusters, d, seed=seed, dtype=torch.float32)
    x = centres.repeat(40, 1) + 0.01 * samples(40 * clusters, d, seed=seed + 1, dtype=torch.float32)
    # The same order for every seed, so that two draws are pairs.
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))], x.view(40, clusters, d).mean(0)


def directions(means: Tensor) -> Tensor:
    """Unit vectors from the mean of clusters of equal size to each."""
    return torch.nn.functional.normalize(means - means.mean(0), dim=1)


def are_parallel(vectors: Tensor, others: Tensor) -> bool:
    """Return whether each vector is another one times one positive factor that all share."""
    factor = vectors.norm() / others.norm()
    return torch.allclose(vectors, factor * others, rtol=0, atol=1e-5)


def _with_free_columns(arch: str) -> dict[str, DecoderNorm]:
    return {"decoder_norm": DecoderNorm.free} if "encoder_norm" in ARCHITECTURES[arch].fixed else {}


def started(
    arch: str, ends: Ends | int, x: Tensor, y: Tensor | None = None, run_seed: int = 0, weights: int = 0, **changes
) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(weights)
    autoencoder = settings_of(arch, **{"d_sae": 14, **changes, **_with_free_columns(arch)}).build(ends, generator)
    autoencoder.initialise(lambda: x, 0.5, None if y is None else lambda: y, 2.0, seed=run_seed)
    return autoencoder


def test_active_subspace_by_hand():
    # All variance is along u = (.6, .8), so each row is u or its opposite.
    x = torch.tensor([-2.0, 1.0, 4.0])[:, None] * torch.tensor([0.6, 0.8]) + torch.tensor([3.0, 1.0])
    (u,) = principal_components(x, 1).T
    u = u * u.sign()
    torch.testing.assert_close(u, torch.tensor([0.6, 0.8]))
    changes = {"decoder_init": DecoderInit.active_subspace, "active_rank": 1}
    rows = settings_of("topk", d_sae=14, **changes).build(2, torch.Generator().manual_seed(0))
    rows.initialise(lambda: x, 1.0, seed=0)
    torch.testing.assert_close(rows.W_dec.abs(), torch.tensor([[0.6, 0.8]]).expand(14, 2))


@each_architecture
def test_active_subspace_holds_all_rows_and_their_directions_differ(arch: str):
    basis = torch.linalg.qr(samples(5, 2, seed=9, dtype=torch.float32)).Q
    x = samples(300, 2, dtype=torch.float32) @ basis.T + 3
    autoencoder = started(arch, 5, x, decoder_init=DecoderInit.active_subspace, active_rank=2)
    rows = autoencoder.W_dec
    torch.testing.assert_close(rows @ basis @ basis.T, rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(14))
    assert are_parallel(autoencoder.W_enc.T, rows)
    assert torch.linalg.matrix_rank(rows) == 2


def test_centroids_are_those_of_separate_clusters():
    x, means = clustered(clusters=6)
    torch.testing.assert_close(torch.cdist(means, centroids(x, 6, seed=0)).amin(1), torch.zeros(6), rtol=0, atol=0.01)


@each_architecture
def test_rows_point_from_the_bias_to_centroids(arch: str):
    x, means = clustered()
    autoencoder = started(arch, 5, x, decoder_init=DecoderInit.kmeans, b_dec_init=BiasInit.mean)
    # Two rows may have begun in one cluster, and then one of them in between two others.
    assert ((directions(means) @ autoencoder.W_dec.T).amax(1) > 0.999).sum() >= 10
    torch.testing.assert_close(autoencoder.W_dec.norm(dim=1), torch.ones(14))
    if "encoder_init" not in ARCHITECTURES[arch].fixed:
        assert are_parallel(autoencoder.W_enc.T, autoencoder.W_dec)


@each_architecture
@pytest.mark.parametrize("start", [DecoderInit.kmeans, DecoderInit.active_subspace])
def test_first_reconstructions_of_rows_that_are_alike_are_not_too_long(arch: str, start: DecoderInit):
    if "encoder_init" in ARCHITECTURES[arch].fixed:
        return
    # Clusters on one line through the mean: the rows of all of them add up for each sample.
    x = torch.randn(600, 1, generator=torch.Generator().manual_seed(3)) * torch.tensor([3.0, 4, 0, 0, 0])
    x += 0.1 * samples(600, dtype=torch.float32)
    autoencoder = started(arch, 5, x, decoder_init=start, b_dec_init=BiasInit.mean)
    scaled = 0.5 * x
    for _ in range(2):
        reconstruction = autoencoder.decode(autoencoder.encode(scaled).codes)
        assert (scaled - reconstruction).square().sum() <= 1.01 * (scaled - scaled.mean(0)).square().sum()
        # As after the first step.
        if autoencoder.settings.decoder_norm is DecoderNorm.unit:
            autoencoder.normalise_decoder()


RECTIFIED = [arch for arch, row in ARCHITECTURES.items() if issubclass(row.settings, RectifiedSettings)]


@pytest.mark.parametrize("arch", RECTIFIED)
@pytest.mark.parametrize(
    ("ends", "changes"), [(5, {}), (5, {"apply_b_dec_to_input": False}), (BETWEEN, {})], ids=["plain", "raw", "between"]
)
def test_latents_start_with_the_density_that_is_asked_for(arch: str, ends: Ends | int, changes: dict):
    # The mean is far longer than the distances from it.
    x = samples(2000, dtype=torch.float32) + 4
    y = None if ends == 5 else x[:, :4]
    autoencoder = started(arch, ends, x, y, init_density=0.1, **changes)
    encoding = autoencoder.encode(0.5 * x)
    # A gate may be open where the magnitude is negative.
    deciding = encoding.extra.get("gate", encoding.codes)
    shares = (deciding.dense() != 0).float().mean(0)
    torch.testing.assert_close(shares, torch.full((14,), 0.1), rtol=0, atol=0.005)


@pytest.mark.parametrize("refinements", [0, 1, 3])
def test_refined_codes_start_with_the_length_of_least_squares(refinements: int):
    x = torch.randn(600, 1, generator=torch.Generator().manual_seed(3)) * torch.tensor([3.0, 4, 0, 0, 0])
    x += 0.1 * samples(600, dtype=torch.float32)
    changes = {"k": 6, "refinements": refinements, "decoder_init": DecoderInit.kmeans, "b_dec_init": BiasInit.mean}
    record = started("lista", 5, x, **changes)(0.5 * x)
    fvu = record.error.square().sum() / (0.5 * x - 0.5 * x.mean(0)).square().sum()
    assert fvu < 0.5


def test_seed_of_kmeans_alone_decides_the_rows():
    x = samples(400, dtype=torch.float32)
    rows = [
        started("topk", 5, x, None, decoder_init=DecoderInit.kmeans, **each).W_dec
        for each in (
            {"weights": 0, "run_seed": 0},
            {"weights": 1, "run_seed": 1},
            {"kmeans_seed": 1},
            {"kmeans_seed": None, "run_seed": 5},
            {"kmeans_seed": None, "run_seed": 6},
        )
    ]
    assert torch.equal(rows[0], rows[1])
    assert not any(torch.equal(a, b) for a, b in pairwise(rows[1:]))


@each_with("target")
def test_clusters_of_targets_give_columns_of_their_inputs(arch: str):
    # Each target belongs to one input: the encoder's column is what its cluster reads.
    (x, read), (y, written) = clustered(5, seed=3), clustered(4, seed=5)
    autoencoder = started(arch, BETWEEN, x, y, decoder_init=DecoderInit.kmeans, b_dec_init=BiasInit.mean)
    cosines, which = (directions(written) @ autoencoder.W_dec.T).max(1)
    pure = cosines > 0.9999
    assert pure.sum() >= 8
    columns = torch.nn.functional.normalize(autoencoder.W_enc.T[which], dim=1)
    assert (columns * directions(read)).sum(1)[pure].min() > 0.999
    drawn = started(arch, BETWEEN, x, y, decoder_init=DecoderInit.kmeans, encoder_init=EncoderInit.random)
    fresh = settings_of(arch, d_sae=14).build(BETWEEN, torch.Generator().manual_seed(0))
    assert are_parallel(drawn.W_enc.T, fresh.W_enc.T)


@each_with("target")
def test_crosscoder_starts_with_centroids_of_joined_parts(arch: str):
    x, means = clustered(10)
    autoencoder = started(arch, CROSSCODER, x, decoder_init=DecoderInit.kmeans, b_dec_init=BiasInit.mean)
    assert ((directions(means) @ autoencoder.W_dec.T).amax(1) > 0.999).sum() >= 10


@each_with("decoder_norm", "encoder_init", "decoder_init")
@pytest.mark.parametrize("ends", [Ends.of(5), BETWEEN, CROSSCODER], ids=["autoencoder", "transcoder", "crosscoder"])
def test_zero_decoder_explains_nothing_at_first(arch: str, ends: Ends):
    if not ends.plain and "target" in ARCHITECTURES[arch].fixed:
        return
    x = samples(200, ends.input.width, dtype=torch.float32) + 2
    y = samples(200, ends.target.width, seed=2, dtype=torch.float32) - 3
    changes = {"decoder_init": DecoderInit.zeros, "b_dec_init": BiasInit.mean, "decoder_norm": DecoderNorm.free}
    autoencoder = started(arch, ends, x, None if ends.same else y, **changes)
    record = autoencoder(0.5 * x, targets=None if ends.same else 2 * y)
    residual, variance = record.error.square().sum(), (record.wanted - record.wanted.mean(0)).square().sum()
    torch.testing.assert_close(residual, variance)
    assert record.codes.dense().any()
    residual.backward()
    assert autoencoder.W_dec.grad is not None
    assert autoencoder.W_dec.grad.any() or ARCHITECTURES[arch].given_codes


@each_with("target")
def test_rows_are_what_the_mlp_writes_along_the_columns(arch: str):
    # The MLP squares; units are halves of the inputs' and doubles of the targets'.
    weights = samples(5, 4, seed=8, dtype=torch.float32)
    x = samples(200, dtype=torch.float32) + 1
    y = x.square() @ weights
    autoencoder = settings_of(
        arch, d_sae=14, decoder_init=DecoderInit.mlp, decoder_norm=DecoderNorm.free, init_norm=0.5
    )
    autoencoder = autoencoder.build(BETWEEN, torch.Generator().manual_seed(0))
    autoencoder.initialise(lambda: x, 0.5, lambda: y, 2.0, seed=0, mlp=lambda raw: raw.square() @ weights)
    distance = (x - x.mean(0)).square().sum(1).mean().sqrt()
    moved = x.mean(0) + distance * torch.nn.functional.normalize(autoencoder.W_enc.T, dim=1)
    written = moved.square() @ weights
    wanted = 0.5 * torch.nn.functional.normalize(written - written.mean(0), dim=1)
    torch.testing.assert_close(autoencoder.W_dec, wanted, rtol=1e-4, atol=1e-5)


@each_with("target", "decoder_norm")
@pytest.mark.parametrize("start", [DecoderInit.kmeans, DecoderInit.active_subspace])
def test_latents_of_layers_start_within_their_layers(arch: str, start: DecoderInit):
    ends = replace(CROSSCODER, blocks=blocks_across_layers(2))
    x = samples(300, 10, dtype=torch.float32)
    changes = {"d_sae": 14, "decoder_init": start, **_with_free_columns(arch)}
    autoencoder = settings_of(arch, **changes).build(ends, torch.Generator().manual_seed(0))
    autoencoder.initialise(lambda: x, 0.5, seed=0)
    for region in ends.unwritten(14):
        assert not autoencoder.W_dec[region].any()
    for latents, dimensions in ends.unread(14):
        assert not autoencoder.W_enc[dimensions, latents].any()
    torch.testing.assert_close(autoencoder.W_dec.norm(dim=1), torch.ones(14))


def test_latents_that_are_drawn_again_ignore_the_decoders_start():
    settings = settings_of("topk", d_sae=14, decoder_init=DecoderInit.kmeans)
    autoencoder = settings.build(5, torch.Generator().manual_seed(0))
    drawn = autoencoder.W_dec.clone()
    # Fewer vectors than latents.
    autoencoder.initialise(lambda: samples(4, dtype=torch.float32), 1.0)
    assert torch.equal(autoencoder.W_dec, drawn)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"active_rank": 2}, r"arch\.active_rank is 2.*decoder_init=active_subspace"),
        ({"decoder_init": DecoderInit.zeros}, r"arch\.decoder_norm=unit.*set arch\.decoder_norm=free"),
        (
            {"decoder_init": DecoderInit.zeros, "decoder_norm": DecoderNorm.free, "encoder_init": EncoderInit.tied},
            r"encoder_init=tied",
        ),
        (
            {"decoder_init": DecoderInit.zeros, "decoder_norm": DecoderNorm.free, "align_encoder": True},
            r"align_encoder=true",
        ),
        (
            {"decoder_init": DecoderInit.zeros, "decoder_norm": DecoderNorm.free, "archetype_distance": 1.0},
            r"which arch\.archetype_distance needs; set arch\.archetype_distance=null",
        ),
        ({"archetype_distance": 1.0}, r"archetype_distance is 1, .*set arch\.decoder_norm=free"),
    ],
)
def test_settings_that_cannot_hold(changes: dict, says: str):
    with pytest.raises(ValueError, match=says):
        settings_of("topk", **changes)


@pytest.mark.parametrize("start", [DecoderInit.kmeans, DecoderInit.active_subspace, DecoderInit.mlp])
def test_columns_of_unit_norm_refuse_rows_that_are_alike(start: DecoderInit):
    with pytest.raises(ValueError, match=rf"decoder_init is {start.name}.*decoder_norm=free"):
        settings_of("group_topk", decoder_init=start)


def test_too_few_vectors_or_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"each of 14 latents, and there are 9.*source\.shard_tokens"):
        started("topk", 5, samples(9, dtype=torch.float32), decoder_init=DecoderInit.kmeans)
    many = settings_of("topk", decoder_init=DecoderInit.active_subspace, active_rank=5)
    with pytest.raises(ValueError, match=r"active_rank is 5, but vectors of width 4"):
        many.check_ends(BETWEEN)

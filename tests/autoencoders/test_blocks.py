"""Dictionaries whose latents read and write some parts only: transcoders of several layers, partitioned crosscoders."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import (
    Ends,
    Layout,
    PartNorm,
    blocks_across_layers,
    blocks_per_layer,
    exclusive_blocks,
)
from fsae.autoencoders.settings import DecoderInit, DecoderNorm, EncoderInit
from fsae.autoencoders.warm_start import check_start
from fsae.losses.objective import Objective
from fsae.sources.layout import LayoutSettings
from fsae.training.gradient_learner import GradientLearner
from tests.architectures import samples, settings_of
from tests.training.runs import adam, terms

IN, OUT = (Layout(tuple((f"{name}.{layer}", width) for layer in range(3))) for name, width in (("in", 3), ("out", 2)))
PER_LAYER = Ends(input=IN, target=OUT, part_norm=PartNorm.joint, blocks=blocks_per_layer(3))
CROSS_LAYER = replace(PER_LAYER, blocks=blocks_across_layers(3))
PARTITIONED = Ends(input=IN, target=IN, blocks=exclusive_blocks(3, 0.2))
each_ends = pytest.mark.parametrize(
    "ends", [PER_LAYER, CROSS_LAYER, PARTITIONED], ids=["per_layer", "cross_layer", "partitioned"]
)


def built(arch: str, ends: Ends, d_sae: int = 15, **changes) -> SparseAutoencoder:
    return settings_of(arch, d_sae=d_sae, **changes).build(ends, torch.Generator().manual_seed(0)).double()


def outside(dictionary: SparseAutoencoder, weights: Sequence[Tensor | None]) -> list[Tensor]:
    """The entries of W_enc and W_dec, or of their moments, between latents and parts that they do not reach."""
    W_enc, W_dec = weights
    assert W_enc is not None
    assert W_dec is not None
    ends, d_sae = dictionary.ends, dictionary.d_sae
    found = [W_enc.T[region] for region in ends.unread(d_sae)] + [W_dec[region] for region in ends.unwritten(d_sae)]
    assert found
    return found


def learner(dictionary: SparseAutoencoder, arch: str, **changes) -> GradientLearner:
    return GradientLearner(dictionary, Objective(terms(arch)), adam(**changes), 1.0, seed=3)


def test_cross_layer_transcoder_by_hand():
    # f = (2, 3); rows 0 -> 0: 1, 0 -> 1: 0.5, 1 -> 1: 2. So y = (2 x 1, 2 x 0.5 + 3 x 2).
    two = Layout((("in.0", 1), ("in.1", 1)))
    ends = Ends(input=two, target=Layout((("out.0", 1), ("out.1", 1))), blocks=blocks_across_layers(2))
    for norm, first in ((PartNorm.joint, 1.25**0.5), (PartNorm.sum, 1.5)):
        dictionary = built("standard", replace(ends, part_norm=norm), 2, decoder_norm=DecoderNorm.free)
        with torch.no_grad():
            dictionary.W_enc.copy_(torch.eye(2))
            dictionary.W_dec.copy_(torch.tensor([[1.0, 0.5], [0.0, 2.0]]))
        record = dictionary(torch.tensor([[2.0, 3.0]], dtype=torch.float64), sparse=True)
        assert record.reconstruction.tolist() == [[2.0, 7.0]]
        assert record.code_weights.tolist() == pytest.approx([first, 2.0])
    # Targets (1, 5) have the squared error 5.
    assert (record.reconstruction - torch.tensor([[1.0, 5.0]])).square().sum().item() == 5


def test_linear_path_stays_within_its_layer_and_is_not_transposed():
    # x = (1, 2) in both layers, f = 0, W_skip = [[1, 1], [0, 1]] in layer 0: (3, 2), and (1, 3) by the transposed one.
    ends = Ends(
        input=Layout((("in.0", 2), ("in.1", 2))),
        target=Layout((("out.0", 2), ("out.1", 2))),
        skip=True,
        blocks=blocks_across_layers(2),
    )
    dictionary = built("standard", ends, 2)
    with torch.no_grad():
        dictionary.get_parameter("W_skip").copy_(torch.ones(4, 4))
        dictionary.get_parameter("W_skip")[1, 0] = 0.0
        dictionary.get_parameter("b_enc").fill_(-100.0)
    dictionary.mask_weights()
    x = torch.tensor([[1.0, 2.0, 1.0, 2.0]], dtype=torch.float64)
    assert dictionary(x).reconstruction.tolist() == [[3.0, 2.0, 3.0, 3.0]]


def test_exclusive_latents_read_and_write_their_own_part():
    # Sizes 1, 1, 1: latents 0 and 2 are of part A, latents 1 and 2 of part B.
    two = Layout((("A", 1), ("B", 1)))
    dictionary = built("standard", Ends(input=two, target=two, blocks=exclusive_blocks(2, 1 / 3)), 3)
    for rows in (dictionary.W_enc.T, dictionary.W_dec):
        assert (rows != 0).T.tolist() == [[True, False, True], [False, True, True]]
    assert dictionary.W_dec.norm(dim=1).tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_weights_of_a_cross_layer_transcoder_are_block_triangular():
    dictionary = built("topk", CROSS_LAYER)
    reached = [[bool(part.any()) for part in OUT.split(rows)] for rows in dictionary.W_dec.split(5)]
    assert reached == [[True, True, True], [False, True, True], [False, False, True]]
    read = [[bool(part.any()) for part in IN.split(rows)] for rows in dictionary.W_enc.T.split(5)]
    assert read == [[True, False, False], [False, True, False], [False, False, True]]


@each_ends
def test_columns_begin_with_the_norms_of_the_dimensions_that_they_read(ends: Ends):
    columns = built("topk", ends, 1500, encoder_init=EncoderInit.random).W_enc.norm(dim=0)
    assert columns.square().mean().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("arch", ["standard", "jumprelu", "gated", "topk"])
def test_cross_layer_transcoder_with_its_diagonal_alone_is_one_per_layer(arch: str):
    across, alone = built(arch, CROSS_LAYER), built(arch, PER_LAYER)
    weights = {**alone.state_dict()}
    across.load_state_dict(weights)
    x = samples(9, 9)
    for sparse in (False, True):
        a, b = across(x, sparse), alone(x, sparse)
        assert torch.equal(a.codes.dense(), b.codes.dense())
        torch.testing.assert_close(a.reconstruction, b.reconstruction)
        assert torch.equal(a.code_weights, b.code_weights) if a.code_weights is not None else b.code_weights is None


def test_layers_trained_together_become_the_transcoders_trained_alone():
    together = built("standard", PER_LAYER)
    ends, alone = Ends(input=Layout.of(3, "in"), target=Layout.of(2, "out")), []
    regions = list(zip(PER_LAYER.read(15), PER_LAYER.written(15), strict=True))
    for (latents, read), (_, written) in regions:
        alone.append(built("standard", ends, 5))
        with torch.no_grad():
            alone[-1].W_enc.copy_(together.W_enc[read, latents])
            alone[-1].W_dec.copy_(together.W_dec[latents, written])
    x, y = samples(16, 9), samples(16, 6, seed=2)
    objective = {name: term for name, term in terms("standard").items() if name != "fisher"}
    for dictionary, inputs, targets in ((together, x, y), *zip(alone, IN.split(x), OUT.split(y), strict=True)):
        trained = GradientLearner(
            dictionary, Objective(objective), adam(resample_every=None, clip_norm=None), 1.0, seed=3
        )
        for step in range(10):
            trained.step(inputs, step, targets)
    for each, ((latents, read), (_, written)) in zip(alone, regions, strict=True):
        torch.testing.assert_close(together.W_enc[read, latents], each.W_enc.data)
        torch.testing.assert_close(together.W_dec[latents, written], each.W_dec.data)
        torch.testing.assert_close(together.b_dec[written], each.b_dec.data)


@each_ends
@pytest.mark.parametrize("arch", ["topk", "batch_topk", "jumprelu"])
def test_nothing_leaks_out_of_the_blocks_in_training(arch: str, ends: Ends):
    # AuxK, the Fisher penalty, weight decay, clipping, resampling, and both kinds of products.
    dictionary = built(arch, ends)
    trained = learner(dictionary, arch, weight_decay=0.1, clip_norm=0.5)
    with torch.no_grad():
        dictionary.get_parameter("b_enc")[::4] = -50.0
    for step in range(20):
        trained.sparse = step % 2 == 0
        trained.step(samples(16, 9, seed=step), step, None if ends.same else samples(16, 6, seed=90 + step))
    assert trained.resampled > 0
    weights = [dictionary.get_parameter(name) for name in ("W_enc", "W_dec")]
    moments = [[trained.optimiser.state[each][name] for each in weights] for name in ("exp_avg", "exp_avg_sq")]
    for tensors in (weights, *moments):
        assert all(not entries.any() for entries in outside(dictionary, tensors))
        assert all(bool(each.any()) for each in tensors)


@each_ends
def test_gradients_within_the_blocks_are_those_of_the_whole_matrices(ends: Ends):
    x, y = samples(12, 9), samples(12, ends.target.width, seed=2)
    dictionary = built("topk", ends)
    record = dictionary(x, targets=y)
    record.error.square().sum().backward()
    found = [dictionary.get_parameter(name).grad for name in ("W_enc", "W_dec")]
    assert not any(entries.any() for entries in outside(dictionary, found))
    W_enc, W_dec = (each.detach().clone().requires_grad_() for each in (dictionary.W_enc, dictionary.W_dec))
    on = record.codes.dense() != 0
    pre = dictionary.encoder_input(x).detach() @ W_enc + dictionary.get_parameter("b_enc").detach()
    (y - (pre * on) @ W_dec - dictionary.b_dec.detach()).square().sum().backward()
    dictionary.mask_weights()
    masked = [W_enc.grad, W_dec.grad]
    for entries in outside(dictionary, masked):
        entries.zero_()
    torch.testing.assert_close(found[1], masked[1])
    torch.testing.assert_close(found[0], masked[0])


def test_partitions_of_no_latent_are_a_crosscoder():
    assert LayoutSettings(layers=[0, 1, 2], exclusive=0.0).ends(IN, IN) == Ends(input=IN, target=IN)


@pytest.mark.parametrize("arch", ["lista", "mlp_encoder", "matching_pursuit"])
def test_architectures_that_mix_parts_are_refused(arch: str):
    with pytest.raises(ValueError, match=r"layout"):
        settings_of(arch, d_sae=15).check_ends(PARTITIONED)


def test_numbers_of_latents_that_cannot_be_divided_are_refused():
    for ends, d_sae, advice in (
        (PER_LAYER, 16, "a multiple of 3"),
        # A fifth of two latents is none, and of five one.
        (PARTITIONED, 2, "at least 5"),
    ):
        with pytest.raises(ValueError, match=rf"cannot be divided into blocks.*set arch\.d_sae to {advice}$"):
            settings_of("standard", d_sae=d_sae).check_ends(ends)
    settings_of("standard", d_sae=5).check_ends(PARTITIONED)
    assert [each.stop for each in PER_LAYER.latents(15)] == [5, 10, 15]
    assert PARTITIONED.latents(16) == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 16)]


def test_resampled_latents_read_and_write_their_own_parts():
    dictionary = built("topk", CROSS_LAYER)
    latents = torch.tensor([1, 7, 14])
    read, written = (torch.nn.functional.normalize(samples(3, width, seed=5), dim=1) for width in (9, 6))
    dictionary.resample(latents, torch.arange(15) > 1, read, written)
    assert not any(entries.any() for entries in outside(dictionary, [dictionary.W_enc, dictionary.W_dec]))
    torch.testing.assert_close(dictionary.W_dec[latents].norm(dim=1), torch.ones(3, dtype=torch.float64))
    own = torch.nn.functional.normalize(read[1, 3:6], dim=0)
    torch.testing.assert_close(torch.nn.functional.normalize(dictionary.W_enc[3:6, 7], dim=0), own)


@each_ends
@pytest.mark.parametrize("init", [DecoderInit.kmeans, DecoderInit.active_subspace], ids=lambda init: init.name)
def test_decoders_from_data_begin_within_the_blocks(init: DecoderInit, ends: Ends):
    dictionary = built("topk", ends, decoder_init=init).float()
    x, y = samples(60, 9, dtype=torch.float32), samples(60, 6, seed=2, dtype=torch.float32)
    dictionary.initialise(lambda: x, 1.0, None if ends.same else lambda: y, seed=0)
    assert not any(entries.any() for entries in outside(dictionary, [dictionary.W_enc, dictionary.W_dec]))
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(15))
    assert bool((dictionary.W_enc.norm(dim=0) > 0).all())


def test_warm_starts_from_latents_of_other_parts_are_refused():
    across = built("topk", CROSS_LAYER)
    check_start(across, built("topk", CROSS_LAYER))
    for other in (built("topk", PER_LAYER), built("topk", CROSS_LAYER, 30)):
        with pytest.raises(ValueError, match="different parts"):
            check_start(across, other)

"""Autoencoders whose input and target differ or have several parts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Block, Ends, Layout, PartNorm, Scaling, exclusive_blocks
from fsae.autoencoders.settings import BiasInit, DecoderNorm, EncoderInit
from fsae.export.folding import fold
from fsae.losses.sparsity import L1
from fsae.losses.term import Moment
from tests.architectures import ARCHITECTURES, FITTED, each_with, samples, settings_of

BETWEEN = Ends(input=Layout.of(5, "mlp_in.0"), target=Layout.of(4, "mlp_out.0"))
SKIP = Ends(input=BETWEEN.input, target=BETWEEN.target, skip=True)
LOW_RANK = Ends(input=BETWEEN.input, target=BETWEEN.target, skip=True, skip_rank=2)
LAYERS = Layout((("resid_mid.0", 3), ("resid_mid.1", 2)))
CROSSCODER = Ends(input=LAYERS, target=LAYERS)


def _is_between_layouts(arch: str) -> bool:
    try:
        settings_of(arch, d_sae=14).check_ends(BETWEEN)
    except ValueError:
        return False
    return True


# The others need one site at both ends, and refuse.
each_between = pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if _is_between_layouts(arch)])
# Blocks that fit 14 latents.
OWN = Block(6 / 14, (0,), (0,)), Block(7 / 14, (1,), (1,))
OUT = Layout((("mlp_out.0", 1), ("mlp_out.1", 3)))
PER_LAYER = Ends(input=LAYERS, target=OUT, skip=True, part_norm=PartNorm.joint, blocks=OWN)
CROSS_LAYER = Ends(input=LAYERS, target=OUT, blocks=(replace(OWN[0], writes=(0, 1)), OWN[1]))
PARTITIONED = Ends(input=LAYERS, target=LAYERS, blocks=exclusive_blocks(2, 0.2))
ENDS = {
    "transcoder": BETWEEN, "skip_transcoder": SKIP, "low_rank": LOW_RANK, "crosscoder": CROSSCODER,
    "per_layer_transcoder": PER_LAYER, "cross_layer_transcoder": CROSS_LAYER, "partitioned": PARTITIONED,
}  # fmt: skip
each_ends = pytest.mark.parametrize("ends", list(ENDS.values()), ids=list(ENDS))


def moved(arch: str, ends: Ends, d_sae: int = 14, **changes) -> SparseAutoencoder:
    """An autoencoder between these ends, in float64, whose every parameter was moved away from its start."""
    generator = torch.Generator().manual_seed(0)
    autoencoder = settings_of(arch, d_sae=d_sae, **changes).build(ends, generator).double()
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    autoencoder.mask_weights()
    return autoencoder


def output(autoencoder: SparseAutoencoder, x: Tensor) -> Tensor:
    return autoencoder(x, sparse=True).reconstruction


@each_ends
@each_with("target")
def test_weights_have_the_widths_of_their_ends(arch: str, ends: Ends):
    autoencoder = moved(arch, ends)
    d_in, d_out = ends.input.width, ends.target.width
    assert autoencoder.W_enc.shape == (d_in, 14)
    assert autoencoder.W_dec.shape == (14, d_out)
    assert output(autoencoder, samples(7)).shape == (7, d_out)


@each_ends
@each_with("target")
def test_sparse_and_dense_codes_agree(arch: str, ends: Ends):
    autoencoder = moved(arch, ends).eval()
    dense, sparse = autoencoder(samples(7)), autoencoder(samples(7), sparse=True)
    torch.testing.assert_close(sparse.codes.dense(), dense.codes.dense())
    torch.testing.assert_close(sparse.reconstruction, dense.reconstruction)


@each_ends
@each_with("target")
def test_folding_takes_each_part_by_its_own_factor(arch: str, ends: Ends):
    # The biases decide what is on, so the codes of the folded one must be on for the same inputs.
    autoencoder = moved(arch, ends).eval()
    inputs, targets = (0.5, 3.0), (0.25, 2.0)
    scaling = Scaling(inputs[: len(ends.input.parts)], targets[: len(ends.target.parts)])
    if ends.same:
        scaling = Scaling(inputs, inputs)
    scale, target_scale = (
        layout.spread(factors, torch.device("cpu"), torch.float64)
        for layout, factors in ((ends.input, scaling.input), (ends.target, scaling.target))
    )
    x, folded = samples(20), fold(autoencoder, scaling)
    torch.testing.assert_close(output(folded, x), output(autoencoder, x * scale) / target_scale)
    was_on, is_on = (each.codes.dense() != 0 for each in (autoencoder(x * scale), folded(x)))
    assert torch.equal(is_on, was_on)
    assert was_on.any()
    if not autoencoder.latents_compete:
        torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(14, dtype=torch.float64))


@each_with("target")
def test_crosscoder_of_one_part_is_an_autoencoder(arch: str):
    one = Layout.of(5, "resid_mid.3")
    a, b = (
        settings_of(arch, d_sae=14).build(ends, torch.Generator().manual_seed(0))
        for ends in (5, Ends(input=one, target=one))
    )
    for autoencoder in (a, b):
        autoencoder.initialise(lambda: samples(50, dtype=torch.float32), 1.0)
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    x = samples(7, dtype=torch.float32)
    assert torch.equal(output(a, x), output(b, x))
    assert all(torch.equal(p, q) for p, q in zip(fold(a, 0.3).parameters(), fold(b, 0.3).parameters(), strict=True))


@each_with("target")
def test_transcoder_to_its_own_input_is_an_autoencoder_without_a_centre(arch: str):
    plain = moved(arch, Ends.of(5), apply_b_dec_to_input=False, encoder_init=EncoderInit.random)
    between = moved(arch, Ends(input=Layout.of(5, "a"), target=Layout.of(5, "b")))
    x = samples(7)
    assert torch.equal(output(plain, x), output(between, x))


@each_with("target")
@pytest.mark.parametrize("ends", [SKIP, LOW_RANK], ids=["skip", "low_rank"])
def test_skip_path_of_zero_changes_nothing(arch: str, ends: Ends):
    def fresh(ends: Ends) -> SparseAutoencoder:
        return settings_of(arch, d_sae=14).build(ends, torch.Generator().manual_seed(0)).double()

    assert torch.equal(output(fresh(ends), samples(7)), output(fresh(BETWEEN), samples(7)))


def test_skip_transcoder_by_hand():
    """Other libraries' bug: W_skip transposed, which no shape shows if both widths are equal."""
    # f = 2, its row (1, 1), b_dec (0, 1), and x W_skip' = (1 + 2, 2); the transposed matrix would give (3, 6).
    ends = Ends(input=Layout.of(2, "a"), target=Layout.of(2, "b"), skip=True)
    autoencoder = settings_of("standard", d_sae=1).build(ends, torch.Generator()).double()
    weights = {
        "W_enc": [[2.0], [0.0]], "W_dec": [[1.0, 1.0]], "b_dec": [0.0, 1.0], "b_enc": [0.0],
        "W_skip": [[1.0, 1.0], [0.0, 1.0]],
    }  # fmt: skip
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(torch.tensor(weights[name]))
    record = autoencoder(torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    assert record.reconstruction.tolist() == [[5.0, 5.0]]


@pytest.mark.parametrize("ends", [SKIP, LOW_RANK], ids=["skip", "low_rank"])
def test_skip_path_learns_from_its_start(ends: Ends):
    autoencoder = settings_of("topk", d_sae=14).build(ends, torch.Generator().manual_seed(0)).double()
    record = autoencoder(samples(7), targets=samples(7, 4, seed=2))
    record.error.square().sum().backward()
    (written,) = [p for name, p in autoencoder.named_parameters() if name in ("W_skip", "W_skip_write")]
    assert written.grad is not None
    assert written.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("norm", "weights"), [(PartNorm.sum, [7.0, 1.0]), (PartNorm.joint, [5.0, 1.0])], ids=["sum", "joint"]
)
def test_code_weights_are_norms_of_parts(norm: PartNorm, weights: list[float]):
    # Norms (3, 4) and (0, 1) of the two parts; codes (1, 2): 9 by the sum, 7 by the joint norm.
    two = Layout((("base", 1), ("chat", 1)))
    ends = Ends(input=two, target=two, part_norm=norm)
    autoencoder = settings_of("standard", d_sae=2, decoder_norm=DecoderNorm.free).build(ends, torch.Generator())
    with torch.no_grad():
        autoencoder.W_dec.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        autoencoder.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert autoencoder.code_weights is not None
    assert autoencoder.code_weights.tolist() == weights
    record = autoencoder(torch.ones(1, 2))
    assert L1(weight=1.0).measure(record, Moment(torch.empty(0))).value.item() == weights[0] + 2 * weights[1]


def test_sum_of_part_norms_weighs_codes_of_unit_rows():
    autoencoder = settings_of("standard", d_sae=14).build(CROSSCODER, torch.Generator().manual_seed(0))
    assert autoencoder.code_weights is not None
    assert (autoencoder.code_weights > 1).all()


def test_parts_of_equal_width_begin_with_one_draw():
    three = Layout(tuple((f"resid_mid.{layer}", 4) for layer in (3, 6, 9)))
    rows = settings_of("topk", d_sae=14).build(Ends(input=three, target=three), torch.Generator()).W_dec
    first, second, third = three.split(rows)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(14))


def test_biases_between_layouts_begin_at_the_inputs_centre():
    x, y = samples(200, dtype=torch.float32) + 3, samples(200, 4, seed=2, dtype=torch.float32) - 1
    autoencoder = settings_of("topk", d_sae=14, b_dec_init=BiasInit.mean).build(
        BETWEEN, torch.Generator().manual_seed(0)
    )
    autoencoder.initialise(lambda: x, 0.5, lambda: y, 2.0)
    torch.testing.assert_close(autoencoder.b_dec, 2 * y.mean(0))
    pre = autoencoder(0.5 * x).pre_activations.dense()
    torch.testing.assert_close(pre.mean(0), torch.zeros(14), atol=1e-5, rtol=0)


def test_tied_weights_between_layouts_are_refused():
    with pytest.raises(ValueError, match=r"encoder_init is tied.*encoder_init=random"):
        settings_of("topk", d_sae=14, encoder_init=EncoderInit.tied).check_ends(BETWEEN)
    settings_of("topk", d_sae=14, encoder_init=EncoderInit.tied).check_ends(CROSSCODER)


@pytest.mark.parametrize("arch", FITTED)
@pytest.mark.parametrize("ends", [BETWEEN, CROSSCODER], ids=["transcoder", "crosscoder"])
def test_fitted_architectures_refuse_two_layouts(arch: str, ends: Ends):
    with pytest.raises(ValueError, match=r"vectors of one site.*layout=autoencoder"):
        FITTED[arch].check_ends(ends)


def test_scaling_survives_a_checkpoint():
    for scaling in (Scaling.of(0.3), Scaling((0.3,), (2.0,)), Scaling((0.3, 1.5), (0.3, 1.5))):
        assert Scaling.from_state(scaling.state()) == scaling
    assert Scaling.of(0.3).state() == 0.3

import pytest
import torch

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.batch_topk import BatchTopK
from fsae.autoencoders.layout import Ends, Layout, Scaling
from fsae.autoencoders.settings import DecoderNorm
from fsae.autoencoders.standard import StandardSettings
from fsae.export.folding import fold
from tests.architectures import (
    ARCHITECTURES,
    FITTED,
    SquaredSettings,
    build,
    each_architecture,
    each_with,
    fitted,
    relative_error,
    samples,
    with_weights,
)

SCALE = 0.37


def trained(arch: str, **changes) -> SparseAutoencoder:
    """An autoencoder in evaluation mode whose threshold, if it is learned in a buffer, lets about half through."""
    possible = {name: value for name, value in changes.items() if name not in ARCHITECTURES[arch].fixed}
    autoencoder = build(arch, **possible).eval()
    if isinstance(autoencoder, BatchTopK):
        autoencoder.threshold.fill_(0.5)
    return autoencoder


@each_architecture
@pytest.mark.parametrize("decoder_norm", list(DecoderNorm))
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_folded_takes_raw_activations_and_gives_the_same_reconstruction(
    arch, decoder_norm, apply_b_dec_to_input, sparse
):
    """Other libraries' bug: thresholds that are not rescaled with the biases, so that other latents are on."""
    autoencoder = trained(arch, decoder_norm=decoder_norm, apply_b_dec_to_input=apply_b_dec_to_input)
    x = samples(200)
    with torch.no_grad():
        before = autoencoder(x * SCALE, sparse)
        after = fold(autoencoder, SCALE)(x, sparse)
    assert relative_error(after.reconstruction, before.reconstruction / SCALE) < 1e-12
    on = before.codes.dense() != 0
    assert on.any()
    assert not on.all()
    assert torch.equal(after.codes.dense() != 0, on)


@pytest.mark.parametrize("arch", list(FITTED))
def test_what_is_fitted_gives_the_same_and_keeps_the_centres_codes(arch):
    autoencoder = fitted(arch, dtype=torch.float64)
    x = samples(200)
    with torch.no_grad():
        before, after = autoencoder(x * SCALE), fold(autoencoder, SCALE)(x)
    assert relative_error(after.reconstruction, before.reconstruction / SCALE) < 1e-12
    codes = before.codes.dense()
    assert relative_error(after.codes.dense(), torch.where(codes == 1, 1.0, codes / SCALE)) < 1e-12


@each_with("decoder_norm")
def test_codes_times_row_norms_are_lengths_in_raw_units(arch):
    autoencoder = trained(arch, decoder_norm=DecoderNorm.free)
    folded = fold(autoencoder, SCALE)
    x = samples(50)
    with torch.no_grad():
        scaled = autoencoder(x * SCALE).codes.dense() * autoencoder.W_dec.norm(dim=1)
        raw = folded(x).codes.dense() * folded.W_dec.norm(dim=1)
    assert relative_error(raw, scaled / SCALE) < 1e-12


@each_with("decoder_norm")
def test_rows_become_unit_where_that_keeps_the_choice_of_latents(arch):
    autoencoder = trained(arch, decoder_norm=DecoderNorm.free)
    norms = fold(autoencoder, SCALE).W_dec.norm(dim=1)
    wanted = autoencoder.W_dec.norm(dim=1) if ARCHITECTURES[arch].competes else torch.ones_like(norms)
    assert relative_error(norms, wanted) < 1e-12


@each_architecture
def test_unit_rows_give_an_l1_in_raw_units(arch):
    autoencoder = trained(arch)
    autoencoder.normalise_decoder()
    x = samples(50)
    with torch.no_grad():
        scaled, raw = autoencoder(x * SCALE).codes.row_sums(), fold(autoencoder, SCALE)(x).codes.row_sums()
    assert relative_error(raw, scaled / SCALE) < 1e-12


@each_architecture
def test_the_original_is_left_as_it_was(arch):
    autoencoder = build(arch)
    before = {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}
    folded = fold(autoencoder, SCALE)
    assert autoencoder.training
    assert not folded.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in autoencoder.state_dict().items())
    # The sparse products read whole rows of one latent: the encoder stays transposed in memory.
    assert folded.W_enc.T.is_contiguous()


def test_jumprelu_by_hand():
    # Scaled by 1/2, x = 6 becomes 3: pre = 3 * 1 - 1 = 2 > threshold 1.5, so the code is 2 and the reconstruction
    # (2 * 4 + 1) / (1/2) = 18. The row's norm is 4 and the scale 1/2, so a unit of code is worth 4 / (1/2) = 8:
    # W_enc = 1 * 4, b_enc = -1 * 8, threshold = 1.5 * 8, code = 6 * 4 - 8 = 16, and 16 * 1 + 1 / (1/2) = 18.
    autoencoder = with_weights(
        "jumprelu",
        {
            "W_enc": [[1.0]],
            "b_enc": [-1.0],
            "W_dec": [[4.0]],
            "b_dec": [1.0],
            "log_threshold": [torch.tensor(1.5).log().item()],
        },
        decoder_norm=DecoderNorm.free,
        apply_b_dec_to_input=False,
    )
    folded = fold(autoencoder, 0.5)
    weights = [folded.get_parameter(name).item() for name in ("W_enc", "b_enc", "W_dec", "b_dec")]
    assert weights == pytest.approx([4, -8, 1, 2])
    assert folded.get_parameter("log_threshold").exp().item() == pytest.approx(12)
    assert folded(torch.tensor([[6.0]], dtype=torch.float64)).reconstruction.item() == pytest.approx(18)


def test_a_row_of_zeros_stays_one():
    autoencoder = trained("standard", decoder_norm=DecoderNorm.free)
    with torch.no_grad():
        autoencoder.W_dec[3] = 0
        x = samples(20)
        folded = fold(autoencoder, SCALE)
        assert torch.equal(folded.W_dec[3], torch.zeros(5, dtype=torch.float64))
        wanted = autoencoder(x * SCALE).reconstruction / SCALE
        assert relative_error(folded(x).reconstruction, wanted) < 1e-12


def test_codes_without_a_unit_of_their_own_are_refused():
    # (s relu(x))^2 is not s relu(x)^2: folded as its parent it would be another autoencoder.
    autoencoder = SquaredSettings(d_sae=14).build(5, torch.Generator())
    with pytest.raises(
        ValueError, match=r"Squared computes codes in its own way, but does not define change_unit or latents_compete"
    ):
        fold(autoencoder, SCALE)


def test_the_threshold_of_batch_topk_is_folded_by_hand():
    # Scaled by 2, inputs of 0.25 to 0.4 become 0.5 to 0.8, and codes above 0.6 are on: those of raw inputs above 0.3.
    autoencoder = with_weights("batch_topk", {"W_enc": [[1.0]], "W_dec": [[1.0]]}, k=1, apply_b_dec_to_input=False)
    assert isinstance(autoencoder, BatchTopK)
    autoencoder.threshold.fill_(0.6)
    folded = fold(autoencoder.eval(), 2.0)
    assert folded.threshold.item() == pytest.approx(0.3)
    codes = folded(torch.tensor([[0.25], [0.29], [0.31], [0.4]], dtype=torch.float64)).codes.dense()
    assert codes.flatten().tolist() == pytest.approx([0, 0, 0.31, 0.4])


def test_the_linear_path_is_folded_by_both_scales_by_hand():
    # Inputs are multiplied by 2 and targets by 5: 1.5 becomes 3, the path makes 3 * 10 = 30 of it, which is 6 raw.
    ends = Ends(input=Layout.of(1, "mlp_in.0"), target=Layout.of(1, "mlp_out.0"), skip=True)
    autoencoder = StandardSettings(d_sae=1).build(ends, torch.Generator()).double().eval()
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter.zero_()
        autoencoder.W_skip.fill_(10)
    folded = fold(autoencoder, Scaling((2.0,), (5.0,)))
    assert folded.W_skip.item() == pytest.approx(4)
    assert folded(torch.tensor([[1.5]], dtype=torch.float64)).reconstruction.item() == pytest.approx(6)

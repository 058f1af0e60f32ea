"""Settings, starting weights and decoder policies, which no architecture changes."""

import pytest
import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.record import AffineMap
from fsae.autoencoders.settings import AutoencoderSettings, DecoderNorm, EncoderInit
from fsae.losses.reconstruction import SquaredError
from fsae.losses.sparsity import L1, TanhL0
from fsae.losses.term import Moment
from tests.architectures import (
    ARCHITECTURES,
    build,
    each_architecture,
    each_with,
    each_with_gradients_of_codes,
    gradients,
    samples,
    settings_of,
    with_weights,
)

NO_DEAD = Moment(dead_latents=torch.tensor([], dtype=torch.int64))


def fresh(settings: AutoencoderSettings, d_in: int = 5, seed: int = 0) -> Autoencoder:
    return settings.build(d_in, torch.Generator().manual_seed(seed))


@each_architecture
def test_public_shapes_and_memory_layout(arch: str):
    autoencoder = fresh(settings_of(arch, d_sae=14))
    assert autoencoder.W_enc.shape == (5, 14)
    assert autoencoder.W_dec.shape == (14, 5)
    assert autoencoder.b_dec.shape == (5,)
    # One latent's weights lie together in both matrices.
    assert autoencoder.W_enc.stride() == (1, 5)
    assert autoencoder.W_dec.stride() == (5, 1)
    assert autoencoder.bfloat16().W_enc.stride() == (1, 5)


def test_width_from_expansion_or_given():
    assert settings_of("standard", expansion=2.5).width(4) == 10
    assert settings_of("standard", expansion=2.5, d_sae=7).width(4) == 7


@each_with("encoder_init")
def test_starting_weights(arch: str):
    autoencoder = fresh(settings_of(arch, d_sae=14))
    torch.testing.assert_close(autoencoder.W_dec.norm(dim=1), torch.ones(14))
    assert torch.equal(autoencoder.W_enc.T, autoencoder.W_dec)
    assert autoencoder.W_enc.data_ptr() != autoencoder.W_dec.data_ptr()
    assert not autoencoder.b_dec.any()
    again, other = fresh(settings_of(arch, d_sae=14)), fresh(settings_of(arch, d_sae=14), seed=1)
    assert torch.equal(autoencoder.W_dec, again.W_dec)
    assert not torch.equal(autoencoder.W_dec, other.W_dec)


def test_random_encoder_is_drawn_on_its_own():
    autoencoder = fresh(settings_of("standard", d_sae=4000, encoder_init=EncoderInit.random))
    cosine = torch.cosine_similarity(autoencoder.W_enc.T, autoencoder.W_dec, dim=1)
    # Independent directions: 4000 cosines of mean 0 and variance 1/5, so their mean is 0 within 4 * 0.45 / sqrt(4000).
    assert abs(float(cosine.detach().mean())) < 0.03


def test_init_norm_under_free():
    autoencoder = fresh(settings_of("standard", d_sae=14, decoder_norm=DecoderNorm.free, init_norm=0.1))
    torch.testing.assert_close(autoencoder.W_dec.norm(dim=1), torch.full((14,), 0.1))
    torch.testing.assert_close(autoencoder.W_enc.norm(dim=0), torch.full((14,), 0.1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"d_sae": 0}, r"arch\.d_sae is 0"),
        ({"expansion": 0.0}, r"arch\.expansion is 0"),
        ({"init_norm": -1.0, "decoder_norm": DecoderNorm.free}, r"arch\.init_norm is -1"),
        ({"init_norm": 0.5}, r"arch\.decoder_norm=free"),
    ],
)
def test_settings_that_cannot_hold(changes: dict, says: str):
    for arch in ARCHITECTURES:
        with pytest.raises(ValueError, match=says):
            settings_of(arch, **changes)


@pytest.mark.parametrize(
    ("arch", "changes", "says"),
    [
        ("topk", {"k": 0}, r"arch\.k is 0"),
        ("batch_topk", {"k": 0}, r"arch\.k is 0"),
        ("abs_topk", {"k": 0}, r"arch\.k is 0"),
        ("batch_topk", {"threshold_decay": 1.0}, r"arch\.threshold_decay is 1"),
        ("jumprelu", {"init_threshold": 0.0}, r"arch\.init_threshold is 0"),
        ("jumprelu", {"bandwidth": 0.0}, r"arch\.bandwidth is 0"),
    ],
)
def test_settings_of_one_architecture_that_cannot_hold(arch: str, changes: dict, says: str):
    with pytest.raises(ValueError, match=says):
        settings_of(arch, **changes)


@pytest.mark.parametrize("arch", ["topk", "batch_topk", "abs_topk"])
def test_more_active_latents_than_there_are(arch: str):
    settings_of(arch, k=20, expansion=4.0).check_width(5)
    with pytest.raises(ValueError, match=r"arch\.k is 21, more than the 20 latents"):
        settings_of(arch, k=21, expansion=4.0).check_width(5)


def test_affine_map_at_some_latents():
    autoencoder = build("standard")
    affine = AffineMap(samples(4), autoencoder.W_enc, autoencoder.get_parameter("b_enc"))
    chosen = torch.tensor([7, 0, 12])
    torch.testing.assert_close(affine.at(chosen), affine.dense()[:, chosen], rtol=1e-14, atol=1e-14)


@each_with("apply_b_dec_to_input", "b_dec")
def test_decoder_not_subtracted_from_the_input(arch: str):
    autoencoder, x = build(arch, apply_b_dec_to_input=False), samples(6)
    shifted = build(arch, apply_b_dec_to_input=True)
    torch.testing.assert_close(
        autoencoder(x).codes.dense(), shifted(x + shifted.b_dec).codes.dense(), rtol=1e-12, atol=1e-12
    )


@each_architecture
def test_normalise_decoder(arch: str):
    autoencoder = build(arch)
    before = autoencoder.W_dec.detach().clone()
    with torch.no_grad():
        autoencoder.W_dec[3] = 0
    autoencoder.normalise_decoder()
    norms = autoencoder.W_dec.norm(dim=1)
    assert norms[3] == 0  # a zero row has no direction; it must not become NaN
    alive = torch.arange(14) != 3
    torch.testing.assert_close(norms[alive], torch.ones(13, dtype=torch.float64), rtol=1e-12, atol=0)
    cosine = torch.cosine_similarity(autoencoder.W_dec, before, dim=1)
    torch.testing.assert_close(cosine[alive], torch.ones(13, dtype=torch.float64), rtol=1e-12, atol=0)


@each_with_gradients_of_codes
def test_projected_decoder_gradient_keeps_norms_to_first_order(arch: str):
    autoencoder = build(arch)
    autoencoder.normalise_decoder()
    SquaredError().measure(autoencoder(samples(20)), NO_DEAD).value.backward()
    grad = autoencoder.W_dec.grad
    assert grad is not None
    whole = grad.clone()
    autoencoder.project_decoder_gradient()
    along = (grad * autoencoder.W_dec).sum(1)
    assert float(along.detach().abs().max()) < 1e-12 * float(whole.abs().max())
    # Only the part along the row was taken away, and there was such a part.
    removed = whole - grad
    assert float(removed.abs().max()) > 1e-3 * float(whole.abs().max())
    parallel = (removed * autoencoder.W_dec).sum(1, keepdim=True) * autoencoder.W_dec
    torch.testing.assert_close(removed, parallel.detach(), rtol=1e-10, atol=1e-12)


def test_projected_decoder_gradient_by_hand():
    autoencoder = with_weights("standard", {"W_enc": [[1.0, 0.0], [0.0, 1.0]], "W_dec": [[0.6, 0.8], [0.0, 1.0]]})
    autoencoder.W_dec.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    autoencoder.project_decoder_gradient()
    # Row 0: [1 2].[.6 .8] = 2.2, so [1 2] - 2.2 [.6 .8] = [-.32 .24].  Row 1: [3 4] - 4 [0 1] = [3 0].
    torch.testing.assert_close(autoencoder.W_dec.grad, torch.tensor([[-0.32, 0.24], [3, 0]], dtype=torch.float64))


@each_with("decoder_norm")
def test_code_weights_are_decoder_norms_under_free_only(arch: str):
    x = samples(6)
    assert build(arch)(x).code_weights is None
    free = build(arch, decoder_norm=DecoderNorm.free)
    weights = free(x).code_weights
    assert weights is not None
    torch.testing.assert_close(weights, free.W_dec.square().sum(1).sqrt())


@pytest.mark.parametrize("term", [L1(), TanhL0()])
def test_under_free_a_long_decoder_row_does_not_make_its_code_cheap(term):
    # A latent whose encoder shrinks by 3 and whose decoder row grows by 3 is the same latent: same reconstruction,
    # same price. Under `unit` the price would fall.
    def price(stretch: float, norm: DecoderNorm) -> tuple[float, torch.Tensor]:
        autoencoder = build("standard", decoder_norm=norm)
        with torch.no_grad():
            autoencoder.W_enc[:, 1] /= stretch
            autoencoder.get_parameter("b_enc")[1] /= stretch
            autoencoder.W_dec[1] *= stretch
        record = autoencoder(samples(8))
        return float(term.measure(record, NO_DEAD).value.detach()), record.reconstruction

    (free, x_hat), (free_stretched, x_hat_stretched) = price(1.0, DecoderNorm.free), price(3.0, DecoderNorm.free)
    torch.testing.assert_close(x_hat, x_hat_stretched)
    assert free_stretched == pytest.approx(free, rel=1e-12)
    assert price(3.0, DecoderNorm.unit)[0] < 0.99 * price(1.0, DecoderNorm.unit)[0]


def test_under_free_sparsity_pulls_on_decoder_norms():
    autoencoder = build("standard", decoder_norm=DecoderNorm.free)
    record = autoencoder(samples(8))
    grad = gradients(L1().measure(record, NO_DEAD).value, autoencoder)["W_dec"]
    # d/dW_i of mean_b sum_i f_bi |W_i| = mean_b f_bi W_i / |W_i|.
    wanted = record.codes.dense().mean(0).unsqueeze(1) * torch.nn.functional.normalize(autoencoder.W_dec, dim=1)
    torch.testing.assert_close(grad, wanted, rtol=1e-12, atol=1e-14)
    fixed = build("standard")
    assert not gradients(L1().measure(fixed(samples(8)), NO_DEAD).value, fixed)["W_dec"].any()


@each_with("W_dec")
@pytest.mark.parametrize("centred", [True, False])
def test_another_decoder_leaves_every_code_as_it_was(arch: str, centred: bool):
    autoencoder, x = build(arch, apply_b_dec_to_input=centred).eval(), samples(40)
    W_dec, b_dec = samples(14, seed=8), samples(1, seed=9)[0]
    before = autoencoder(x)
    autoencoder.set_decoder(W_dec, b_dec)
    after = autoencoder(x)
    torch.testing.assert_close(after.codes.dense(), before.codes.dense(), rtol=1e-12, atol=1e-12)
    wanted = before.codes.dense() @ W_dec + b_dec
    torch.testing.assert_close(after.reconstruction, wanted, rtol=1e-12, atol=1e-12)
    for one, other in ((before.gate, after.gate), (before.active, after.active)):
        if one is not None and other is not None:
            torch.testing.assert_close(other.dense(), one.dense(), rtol=1e-12, atol=1e-12)

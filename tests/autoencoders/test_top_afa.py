"""Top-AFA by hand, with latents that reach the norm of the input, and what it cannot be combined with."""

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.layout import Ends, Layout
from fsae.autoencoders.settings import DecoderInit, DecoderNorm
from fsae.autoencoders.top_afa import last_lengths
from fsae.training.pam_settings import PamSettings
from fsae.training.population import PopulationSettings
from tests.architectures import ARCHITECTURES, build, samples, settings_of, with_weights

each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])


def test_codes_of_a_start_from_data_are_not_shortened():
    # Shorter codes would be more of them: with the factor of least squares the fvu is above 1.
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0)).relu() @ torch.eye(8, 64)
    settings = settings_of("top_afa", d_sae=64, decoder_init=DecoderInit.kmeans)
    autoencoder = settings.build(64, torch.Generator().manual_seed(0))
    autoencoder.initialise(lambda: x, scale=1.0, seed=0)
    torch.testing.assert_close(autoencoder.W_enc.norm(dim=0), torch.ones(64))


def codes_of(norm: float, sparse: bool, rows: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Tensor:
    """Return the codes of an input of this norm whose pre-activations are 4, 3 and 0.5, and one of -9."""
    x = torch.tensor([[norm, 0.0]], dtype=torch.float64)
    weights = {
        "W_enc": [[each / norm for each in (0.5, 3.0, -9.0, 4.0)], [0.0] * 4],
        "W_dec": [[0.0, rows[2]], [0.0, rows[1]], [0.0, 1.0], [rows[0], 0.0]],
    }
    return with_weights("top_afa", weights)(x, sparse).codes.dense()


@each_path
def test_top_afa_by_hand(sparse: bool):
    """Another library's bug: the norm of all latents is overwritten, so that all are never chosen."""
    # Cumulative norms 4, 5 and sqrt(25.25) = 5.0249; overwritten, the last would leave the two at a norm of 5.1.
    # 5.012 is nearer to 5 than to 5.0249, 4.4 to 4, and with 0.1 the first alone is nearest: one at least is on.
    for norm, wanted in ((5.1, [0.5, 3, 0, 4]), (5.012, [0, 3, 0, 4]), (4.4, [0, 0, 0, 4]), (0.1, [0, 0, 0, 4])):
        torch.testing.assert_close(codes_of(norm, sparse), torch.tensor([wanted], dtype=torch.float64))


@each_path
def test_lengths_count_the_norms_of_rows(sparse: bool):
    # Lengths 2, 3 and 5 of the codes 4, 3 and 0.5, with cumulative norms 5, sqrt(34) = 5.83 and sqrt(38) = 6.16.
    for norm, wanted in ((5.1, [0.5, 0, 0, 0]), (5.8, [0.5, 3, 0, 0]), (9.0, [0.5, 3, 0, 4])):
        found = codes_of(norm, sparse, (0.5, 1.0, 10.0))
        torch.testing.assert_close(found, torch.tensor([wanted], dtype=torch.float64))


@each_path
def test_the_norm_of_the_input_is_that_of_its_distance_from_b_dec(sparse: bool):
    # |(7, 4) - (3, 1)| = 5, and (7, 4) has the norm 8.1, whatever the encoder reads.
    for centred in (True, False):
        weights = {"W_enc": [[0.0] * 3, [0.0] * 3], "b_enc": [4.0, 3.0, 2.0], "W_dec": [[1.0, 0.0]] * 3}
        autoencoder = with_weights("top_afa", weights | {"b_dec": [3.0, 1.0]}, apply_b_dec_to_input=centred)
        assert autoencoder(torch.tensor([[7.0, 4.0]]).double(), sparse).codes.dense().tolist() == [[4, 3, 0]]


def test_latents_of_one_length_are_on_together():
    autoencoder = build("top_afa", d_sae=12)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            axis = autoencoder.latent_axis(name)
            if axis is not None:
                parameter.copy_(parameter.index_select(axis, torch.arange(12) // 2))
    on = autoencoder(samples(30)).codes.dense() != 0
    assert torch.equal(on[:, ::2], on[:, 1::2])
    assert 0 < on.double().mean() < 1


@pytest.mark.parametrize("count", [1, 3, 7, 40])
def test_the_number_that_is_looked_at_first_does_not_matter(count: int):
    lengths = torch.relu(samples(60, 40, dtype=torch.float32))
    norms = torch.linspace(0.1, 7, 60)
    assert torch.equal(last_lengths(lengths, norms, count), last_lengths(lengths, norms))
    # Some norms are above what all latents together have: then all that are on count.
    short = lengths.norm(dim=1) < norms
    assert 0 < short.sum() < 60
    smallest = torch.where(lengths > 0, lengths, torch.inf).amin(1)
    torch.testing.assert_close(last_lengths(lengths, norms, count)[short], smallest[short])


@pytest.mark.parametrize(
    "ends",
    [
        Ends(input=Layout.of(5, "mlp_in.0"), target=Layout.of(5, "mlp_out.0")),
        Ends(input=Layout((("a", 3), ("b", 2))), target=Layout((("a", 3), ("b", 2)))),
    ],
    ids=["transcoder", "crosscoder"],
)
def test_several_sites_are_refused(ends: Ends):
    with pytest.raises(ValueError, match=r"arch TopAFA compares .* vectors of one site.*set layout=autoencoder"):
        settings_of("top_afa", d_sae=14).check_ends(ends)


@pytest.mark.parametrize("expansion", [4, 8, 16])
def test_density_is_that_of_random_directions(expansion: int):
    settings = settings_of("top_afa", d_sae=128 * expansion)
    codes = settings.build(128, torch.Generator().manual_seed(0))(samples(100, 128, dtype=torch.float32)).codes
    density = float((codes.dense() != 0).double().mean())
    assert 0.5 < density / settings.density(128, 0.0) < 1.1
    # With fewer latents than dimensions half of them are on: all whose product is positive.
    assert settings_of("top_afa", d_sae=20).density(128, 0.0) == 0.5


def test_rows_of_zeros_are_refused():
    with pytest.raises(ValueError, match=r"decoder_init is zeros, .* choose another arch\.decoder_init"):
        settings_of("top_afa", decoder_init=DecoderInit.zeros, decoder_norm=DecoderNorm.free)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_short_latents_count_among_many(dtype: torch.dtype):
    # The last one adds 5e-9 of the norm, which float32 does not resolve; all together do not reach 2.
    lengths = torch.tensor([[1.0, 0.0, 1e-4]], dtype=dtype)
    assert last_lengths(lengths, torch.tensor([2.0], dtype=dtype)).item() == pytest.approx(1e-4)


def test_a_decoder_that_is_solved_for_is_refused():
    with pytest.raises(ValueError, match=r"codes of arch TopAFA depend on the decoder; choose another arch"):
        PamSettings().check(settings_of("top_afa"), ARCHITECTURES["top_afa"].loss, PopulationSettings())

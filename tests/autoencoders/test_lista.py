"""The LISTA encoder by hand, its thresholds, and an encoder with a hidden layer; both begin as BatchTopK."""

import pytest
import torch

from fsae.autoencoders.layout import Ends, Layout
from fsae.autoencoders.lista import Lista
from fsae.autoencoders.settings import EncoderInit
from fsae.export.saelens import Provenance, load_saelens, save_saelens
from fsae.training.pam_settings import PamSettings
from fsae.training.population import PopulationSettings
from tests.architectures import ARCHITECTURES, build, samples, settings_of, with_weights

each_path = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])


@each_path
def test_lista_by_hand(sparse: bool):
    # Rows (1, 0), (.6, .8), x = (1, 1), one latent: h_0 = (1, 1.4), f_0 = (0, 1.4), u - f_0 W = (.16, -.12),
    # h_1 = h_0 + .3 (.16, .096 - .096) = (1.048, 1.4).
    weights = {"W_enc": [[1.0, 0.6], [0.0, 0.8]], "W_dec": [[1.0, 0.0], [0.6, 0.8]]}
    record = with_weights("lista", weights, k=1, eta=0.3)(torch.tensor([[1.0, 1.0]]).double(), sparse)
    assert record.pre_activations is not None
    h = record.pre_activations.dense()
    torch.testing.assert_close(h, torch.tensor([[1.048, 1.4]], dtype=torch.float64))
    torch.testing.assert_close(record.codes.dense(), torch.tensor([[0.0, 1.4]], dtype=torch.float64))


@each_path
@pytest.mark.parametrize(("arch", "change"), [("lista", {"refinements": 0}), ("mlp_encoder", {})])
def test_without_refinement_it_is_the_base_bit_for_bit(arch: str, change: dict, sparse: bool):
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    base = settings_of("batch_topk", d_sae=14).build(5, generators[0])
    refined = settings_of(arch, d_sae=14, **change).build(5, generators[1])
    for x in samples(40, dtype=torch.float32).split(10):
        one, other = base(x, sparse), refined(x, sparse)
        assert torch.equal(one.codes.dense(), other.codes.dense())
        assert torch.equal(one.reconstruction, other.reconstruction)
    assert torch.equal(base.get_buffer("threshold"), refined.get_buffer("threshold"))
    x = samples(10, seed=7, dtype=torch.float32)
    assert torch.equal(base.eval()(x, sparse).codes.dense(), refined.eval()(x, sparse).codes.dense())


@each_path
def test_every_selection_has_its_threshold(sparse: bool, tmp_path):
    autoencoder = build("lista", refinements=2, threshold_decay=0.5, dtype=torch.float32)
    assert isinstance(autoencoder, Lista)
    for seed in range(4):
        autoencoder(samples(10, seed=seed, dtype=torch.float32), sparse)
    thresholds = [autoencoder.threshold, *autoencoder.early_thresholds]
    assert len({float(each) for each in thresholds}) == 3
    assert all(each > 0 for each in thresholds)
    # They are kept in a checkpoint and in the export.
    assert autoencoder.state_dict().keys() >= {"threshold", "early_thresholds"}
    save_saelens(autoencoder.eval(), tmp_path / "sae", Provenance())
    x = samples(20, seed=9, dtype=torch.float32)
    loaded = load_saelens(tmp_path / "sae")
    torch.testing.assert_close(loaded(x).codes.dense(), autoencoder(x).codes.dense())
    # One sample's codes do not depend on the others.
    torch.testing.assert_close(autoencoder(x[:1], sparse).codes.dense(), autoencoder(x, sparse).codes.dense()[:1])


def test_a_refinement_lowers_the_error_of_a_tied_encoder():
    plain, refined = (build("lista", 8, 40, k=4, refinements=count, encoder_init=EncoderInit.tied) for count in (0, 1))
    for each in (plain, refined):
        each.normalise_decoder()
    x = samples(200, 8)
    assert refined(x).error.square().sum() < plain(x).error.square().sum()


def test_lista_reads_its_own_error():
    ends = Ends(input=Layout.of(5, "mlp_in.0"), target=Layout.of(5, "mlp_out.0"))
    with pytest.raises(ValueError, match=r"arch Lista reads the error .* set layout=autoencoder"):
        settings_of("lista", d_sae=14).check_ends(ends)
    with pytest.raises(ValueError, match=r"codes of arch Lista depend on the decoder; choose another arch"):
        PamSettings().check(settings_of("lista"), ARCHITECTURES["lista"].loss, PopulationSettings())

import pytest
import torch

from fsae.autoencoders.normalised import InputNorm, Normalised
from fsae.export.folding import fold
from fsae.export.provenance import Provenance
from fsae.export.saelens import load_saelens, save_saelens
from fsae.language_models.forward_pass import ForwardPass
from fsae.language_models.interventions import Add, Intervention
from fsae.language_models.sites import Site, SiteName
from tests.architectures import build, each_architecture, relative_error, samples

D_IN = 5


def normalised(arch: str, norm: InputNorm) -> Normalised:
    return Normalised(build(arch).eval(), norm).eval()


def statistics(x: torch.Tensor, norm: InputNorm) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The normalised samples, and the scale and shift that undo it, by the definitions of SAELens and OpenAI."""
    if norm is InputNorm.constant_norm_rescale:
        factor = D_IN**0.5 / x.norm(dim=1, keepdim=True)
        return x * factor, 1 / factor, torch.zeros(len(x), 1, dtype=x.dtype)
    shift = x.mean(1, keepdim=True)
    spread = (((x - shift) ** 2).sum(1, keepdim=True) / (D_IN - 1)).sqrt()
    return (x - shift) / (spread + 1e-5), spread, shift


@each_architecture
@pytest.mark.parametrize("norm", InputNorm)
@pytest.mark.parametrize("sparse", [False, True])
def test_it_encodes_normalised_samples_and_undoes_the_normalisation(arch, norm, sparse):
    autoencoder, x = normalised(arch, norm), 3 * samples(40, D_IN) + 0.5
    with torch.no_grad():
        record = autoencoder(x, sparse)
        inputs, scale, shift = statistics(x, norm)
        inner = autoencoder.inner(inputs)
    assert relative_error(record.codes.dense(), inner.codes.dense()) < 1e-12
    assert relative_error(record.reconstruction, inner.reconstruction * scale + shift) < 1e-12
    assert (record.codes.dense() != 0).any()


@pytest.mark.parametrize("norm", InputNorm)
def test_another_unit_of_the_samples_leaves_the_codes(norm):
    autoencoder, x = normalised("topk", norm), 3 * samples(40, D_IN)
    folded = fold(autoencoder, 0.25)
    with torch.no_grad():
        assert relative_error(folded(x).codes.dense(), autoencoder(0.25 * x).codes.dense()) < 1e-4
        assert relative_error(folded(x).reconstruction, autoencoder(0.25 * x).reconstruction / 0.25) < 1e-4


@pytest.mark.parametrize("norm", InputNorm)
def test_it_is_written_as_saelens_writes_it_and_read_back(tmp_path, norm):
    autoencoder, x = normalised("jumprelu", norm), samples(40, D_IN)
    save_saelens(autoencoder, tmp_path / "sae", Provenance())
    read = load_saelens(tmp_path / "sae")
    with torch.no_grad():
        assert relative_error(read(x.float()).reconstruction, autoencoder(x).reconstruction.float()) < 1e-5


def test_codes_alone_have_no_reconstruction():
    autoencoder = normalised("standard", InputNorm.layer_norm)
    with pytest.raises(ValueError, match=r"normalises each sample \(layer_norm\)"):
        autoencoder.decode(autoencoder.encode(samples(2, D_IN)).codes)


@pytest.mark.parametrize("norm", InputNorm)
def test_an_edit_writes_in_the_unit_of_each_sample(norm):
    autoencoder, x = normalised("standard", norm), 3 * samples(6, D_IN).view(1, 6, D_IN)
    edit = Add(4, 2.0, unit="absolute")
    intervention = Intervention(autoencoder, Site(name=SiteName.resid_pre, layer=0), [edit], largest={})
    edited = intervention.edited(ForwardPass.over(torch.arange(6).view(1, 6)), x)
    _, scale, _ = statistics(x[0], norm)
    assert relative_error(edited[0] - x[0], 2.0 * scale * autoencoder.W_dec[4].detach()) < 1e-9

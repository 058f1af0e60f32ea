"""The unembedding against the logits of small random models of many families."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fsae.language_models.settings import DType, ModelSettings, Package
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model
from fsae.language_models.unembedding import Unembedding
from tests.language_models.conftest import opened
from tests.language_models.zoo import D_MODEL, NUM_LAYERS, write_decoder

TOKENS = torch.tensor([[5, 17, 200, 3, 66, 17]])
END = Site(name=SiteName.resid_post, layer=NUM_LAYERS - 1)
# One family of each kind of final norm: LayerNorm, with 1 + w, without a bias, without weights; RMSNorm, with 1 + w.
# Cohere and Granite scale their logits, Gemma 2 caps them.
FAMILIES = ["gpt2", "nemotron", "cohere", "olmo", "llama", "gemma", "gemma2", "gemma3", "granite"]
LAYER_NORM = {"gpt2", "nemotron", "cohere", "olmo"}


def small(family: str, folder: Path, **settings) -> TransformerLensModel:
    path = str(write_decoder(family, folder))
    return open_language_model(ModelSettings(**({"path": path, "dtype": DType.float32} | settings)))


def uncapped(logits: Tensor, family: str) -> Tensor:
    """Undo the soft cap that Gemma 2 puts on its logits."""
    return 30 * torch.atanh(logits.double() / 30) if family == "gemma2" else logits.double()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_predicts_what_a_small_step_at_the_end_of_the_stream_does(family: str, tmp_path: Path):
    model = small(family, tmp_path)
    path = model.unembedding()
    assert path.centred == (family in LAYER_NORM)
    x = model.activations(TOKENS, [END])[END].double()
    centred = x - x.mean(-1, keepdim=True) if path.centred else x
    size = centred.square().mean(-1, keepdim=True).sqrt()
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0)).double()
    # A norm removes the part of a step that is along the vector itself.
    share = (centred @ direction)[..., None] / centred.square().sum(-1, keepdim=True)
    lasting = (direction - share * centred) / size
    predicted = path.effects(lasting[0].float()).double()
    step = 1e-2 * size.float()
    up, down = (
        uncapped(model.logits(TOKENS, (END, lambda stream, sign=sign: stream + sign * step * direction)), family)
        for sign in (1, -1)
    )
    measured = ((up - down) / (2 * step))[0]
    assert float((measured - predicted).norm() / measured.norm()) < 2e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_model_in_bfloat16_has_the_same_unembedding(family: str, tmp_path: Path):
    exact, rounded = small(family, tmp_path).unembedding(), small(family, tmp_path, dtype=DType.bfloat16).unembedding()
    assert rounded.W_U.dtype == torch.bfloat16
    assert rounded.centred == exact.centred
    torch.testing.assert_close(rounded.norm_weight, exact.norm_weight, rtol=1e-2, atol=1e-2)
    directions = torch.randn(3, D_MODEL)
    torch.testing.assert_close(rounded.effects(directions), exact.effects(directions), rtol=5e-2, atol=5e-2)


def test_a_model_without_a_final_norm_has_a_weight_of_ones(tmp_path: Path):
    path = small("openai_gpt", tmp_path).unembedding()
    assert not path.centred
    assert torch.equal(path.norm_weight, torch.ones(D_MODEL))


def test_effects_do_not_depend_on_the_portions():
    generator = torch.Generator().manual_seed(0)
    W_U, directions = torch.randn(6, 50, generator=generator), torch.randn(4, 6, generator=generator)
    path = Unembedding(W_U, torch.rand(6), centred=True, scale=0.5)
    torch.testing.assert_close(path.effects(directions, tokens_at_once=7), path.effects(directions))
    torch.testing.assert_close(path.effects(directions, through_norm=False), 0.5 * directions @ W_U)


# Norms after attention: none, in Gemma 2 and 3 and GLM 4 a weight with and without 1 +. Granite scales what it adds.
@pytest.mark.parametrize("family", ["gpt2", "llama_wide_heads", "gemma2", "gemma3", "glm4", "granite"])
def test_attn_z_reaches_the_stream_by_one_matrix(family: str, tmp_path: Path):
    model = small(family, tmp_path)
    z, out = (Site(name=name, layer=1) for name in (SiteName.attn_z, SiteName.attn_out))
    matrix = model.into_stream(z)
    assert matrix is not None
    assert matrix.shape == (model.width(z), D_MODEL)
    read = model.activations(TOKENS, [z, out])
    written = read[z][0] @ matrix
    # The constant, if there is one, and the size by which a norm divides are not part of it.
    if family in ("gpt2", "llama_wide_heads", "granite"):
        torch.testing.assert_close(written[1:] - written[:1], read[out][0, 1:] - read[out][0, :1], rtol=1e-3, atol=1e-4)
    else:
        assert float(torch.cosine_similarity(written, read[out][0]).min()) > 0.9999


ADDED = [name for name in SiteName if name.value.startswith("resid") or name.value.endswith("_out")]


@pytest.mark.parametrize("name", ADDED)
def test_other_sites_are_added_as_they_are(name: SiteName):
    model = opened(Package.tiny)
    matrix = model.into_stream(Site(name=name, layer=1))
    assert matrix is not None
    assert torch.equal(matrix, torch.eye(model.shape.d_model))


def test_a_site_that_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match="site"):
        opened(Package.tiny).into_stream(Site(name=SiteName.attn_z, layer=99))

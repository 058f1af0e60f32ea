"""Every family that opens is read and edited at its sites, and a missing site is refused."""

from pathlib import Path

import pytest
import torch

from fsae.language_models.generation import Sampling, generate
from fsae.language_models.interventions import Add, Intervention
from fsae.language_models.settings import DType, ModelSettings
from fsae.language_models.shape import shape_of
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.transformer_lens import open_language_model
from tests.architectures import build
from tests.language_models.zoo import D_MODEL, DECODERS, NUM_LAYERS, write_decoder

# Models that normalise the stream after each sum have no resid_mid, and GPT's has no resid_post either.
MISSING = {"opt_postnorm": {"resid_mid"}, "openai_gpt": {"resid_mid", "resid_post"}}
# Models whose attention and MLP share a norm, or whose norm before the MLP is no module of the block.
WITHOUT_MLP_NORM = {
    "gptj", "codegen", "falcon", "opt", "phi", "cohere", "cohere2", "stablelm_parallel",
}  # fmt: skip
# Models that normalise what a sublayer writes, and not what it reads.
WITHOUT_NORMS = {"openai_gpt", "opt_postnorm", "olmo2", "olmo3", "exaone4"}
# TransformerLens cannot compute the logits of these models, so no site can be replaced.
WITHOUT_LOGITS = {"opt_postnorm"}
# GPT's positions count the padding.
WITHOUT_PADDING = {"openai_gpt"}


def sites_at(layer: int) -> list[Site]:
    """Every site of a block, and one head."""
    return [*(Site(name=name, layer=layer) for name in SiteName), Site(name=SiteName.attn_z, layer=layer, head=1)]


@pytest.mark.parametrize("family", DECODERS)
def test_every_site_is_sound_or_refused(family: str, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    settings = ModelSettings(path=str(write_decoder(family, tmp_path)), dtype=DType.float32)
    model = open_language_model(settings)
    missing = MISSING.get(family, set()) | ({"resid_mid"} if model.shape.parallel else set())
    missing |= {"mlp_normalized"} if family in WITHOUT_MLP_NORM | WITHOUT_NORMS else set()
    missing |= {"attn_normalized"} if family in WITHOUT_NORMS else set()
    tokens = torch.tensor([[5, 17, 200, 3, 66, 17]])
    for layer in range(NUM_LAYERS):
        for site in sites_at(layer):
            if site.name.value in missing:
                with pytest.raises(ValueError, match=r"resid_pre, .*mlp_out, attn_out, attn_z"):
                    model.check_site(site)
                continue
            read = model.activations(tokens, [site])[site]
            early = shape_of(settings)
            assert read.shape[-1] == model.width(site)
            assert early is None or early.width(site) == model.width(site)
            if family in WITHOUT_LOGITS or site.weighted is not None:
                with pytest.raises(ValueError, match=r"can be read but not replaced .* set eval=\[vectors\]"):
                    model.check_splice(site)
            else:
                model.check_splice(site)
    # The stream as transformers returns it.
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        seen = plain(tokens, output_hidden_states=True).hidden_states
    for layer in range(NUM_LAYERS):
        pre = Site(name=SiteName.resid_pre, layer=layer)
        read = model.activations(tokens, [pre])[pre]
        assert read.shape == (1, 6, D_MODEL)
        torch.testing.assert_close(read, seen[layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", sorted(set(DECODERS) - WITHOUT_LOGITS))
def test_edited_text_is_the_same_with_a_cache_and_with_padding(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = open_language_model(ModelSettings(path=str(write_decoder(family, tmp_path)), dtype=DType.float32))
    monkeypatch.setattr(model, "end_ids", frozenset())
    site = next(site for site in model.sites if site.name in (SiteName.resid_mid, SiteName.attn_out))
    autoencoder = build("topk", D_MODEL, 13, dtype=torch.float32).eval()
    edited = Intervention(autoencoder, site, [Add(3, 2.0, decay=0.9)], largest={3: 2.0})
    prompts, sampling = [[5, 17, 200, 3, 66], [40, 41], [9, 8, 7, 6, 5, 4, 3]], Sampling(tokens=8, temperature=0)
    together = generate(model, prompts, sampling, edited.within)
    assert together != generate(model, prompts, sampling)
    assert together == generate(model, prompts, sampling, edited.within, cached=False)
    alone = [generate(model, [prompt], sampling, edited.within)[0] for prompt in prompts]
    assert together == alone
    assert model.accepts_padding == (family not in WITHOUT_PADDING)

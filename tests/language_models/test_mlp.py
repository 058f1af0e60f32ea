"""MLPs as frozen tensors: those of opened models, and their Jacobian."""

from pathlib import Path

import pytest
import torch

from fsae.language_models.mlp import MLP, Affine
from fsae.language_models.settings import DType, ModelSettings
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model
from tests.architectures import samples
from tests.language_models.zoo import write_decoder

TOKENS = torch.tensor([[5, 17, 200, 3, 66, 17]])


def assert_is_the_mlp(model: TransformerLensModel, gated: bool) -> None:
    for layer in (0, 1):
        sites = [Site(name=name, layer=layer) for name in (SiteName.mlp_in, SiteName.mlp_out)]
        read, written = (model.activations(TOKENS, sites)[site] for site in sites)
        mlp = model.mlp(layer)
        assert (mlp.gate is not None) == gated
        torch.testing.assert_close(mlp(read), written, rtol=1e-4, atol=1e-5)


def test_gated_mlp_of_a_packaged_model(tiny: TransformerLensModel):
    assert_is_the_mlp(tiny, gated=True)


# GPT-2 keeps its matrices the other way round, and both have biases.
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_plain_mlp(family: str, tmp_path: Path):
    settings = ModelSettings(path=str(write_decoder(family, tmp_path)), dtype=DType.float32)
    assert_is_the_mlp(open_language_model(settings), gated=False)


def test_mlp_of_another_form_is_refused(tmp_path: Path):
    # A norm follows the MLPs of Gemma 2.
    model = open_language_model(ModelSettings(path=str(write_decoder("gemma2", tmp_path)), dtype=DType.float32))
    with pytest.raises(ValueError, match=r"the MLP of layer 1 of model .* so its Jacobian is not known"):
        model.mlp(1)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_factors_make_the_jacobian(gated: bool):
    into, gate, out = (Affine(samples(*shape, seed=seed), samples(1, shape[1], seed=seed + 3)[0]) for seed, shape in
                       enumerate([(4, 6), (4, 6), (6, 3)], 1))  # fmt: skip
    mlp = MLP(into=into, out=out, activation=torch.nn.functional.gelu, gate=gate if gated else None)
    x = samples(5, 4)
    pairs = mlp.into_hidden(x)
    assert len(pairs) == 1 + gated
    for number, sample in enumerate(x):
        found = sum((W * factors[number] for W, factors in pairs), start=torch.zeros_like(into.W)) @ out.W
        wanted = torch.func.jacrev(lambda one: mlp(one[None])[0])(sample)
        torch.testing.assert_close(found.T, wanted, rtol=1e-12, atol=1e-12)

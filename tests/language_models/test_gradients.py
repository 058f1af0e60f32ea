"""Gradients at sites, float32 within a block, and the attention of a layer."""

import pytest
import torch
from torch import Tensor

from fsae.language_models.settings import DType, ModelSettings, Package
from fsae.language_models.sites import Site, SiteName
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model

TOKENS = torch.randint(1, 200, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def short() -> TransformerLensModel:
    """The tiny model in bfloat16."""
    return open_language_model(ModelSettings(package=Package.tiny, dtype=DType.bfloat16))


@pytest.mark.parametrize("name", SiteName)
def test_a_gradient_is_the_change_of_the_logits_per_change_of_the_activations(
    name: SiteName, tiny: TransformerLensModel
):
    site = Site(name=name, layer=1)
    leaves: list[Tensor] = []

    def cut(x: Tensor) -> Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[0]

    logits = tiny.differentiable_logits(TOKENS, (site, cut))
    torch.testing.assert_close(logits, tiny.logits(TOKENS), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(logits[:, -1, 7].sum(), leaves)
    assert gradient.shape == leaves[0].shape
    step = 1e-2 * torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1))
    up, down = (tiny.logits(TOKENS, (site, lambda x, sign=sign: x + sign * step))[:, -1, 7] for sign in (1, -1))
    assert ((up - down) / 2).sum().item() == pytest.approx((gradient * step).sum().item(), rel=0.02, abs=1e-4)


def test_logits_at_one_position_of_each_row_are_those_of_all_positions(tiny: TransformerLensModel):
    site, at, leaves = Site(name=SiteName.resid_mid, layer=1), torch.tensor([5, 3]), list[Tensor]()

    def cut(x: Tensor) -> Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[-1]

    everywhere = tiny.differentiable_logits(TOKENS, (site, cut))[torch.arange(2), at][:, None]
    there = tiny.differentiable_logits(TOKENS, (site, cut), at=at)
    assert there.shape == (2, 1, tiny.d_vocab)
    torch.testing.assert_close(there, everywhere)
    torch.testing.assert_close(tiny.logits(TOKENS, at=at), everywhere)
    gradients = [
        torch.autograd.grad(each[..., 7].sum(), x)[0] for each, x in zip((everywhere, there), leaves, strict=True)
    ]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_gradient_at_an_earlier_site_includes_paths_through_a_later_one(tiny: TransformerLensModel):
    early, late = Site(name=SiteName.resid_post, layer=0), Site(name=SiteName.resid_mid, layer=2)
    read: dict[Site, Tensor] = {}

    def keep(site: Site):
        def kept(x: Tensor) -> Tensor:
            read[site] = x if x.requires_grad else x.detach().requires_grad_()
            return read[site]

        return kept

    logits = tiny.differentiable_logits(TOKENS, (late, keep(late)), (early, keep(early)))
    together = torch.autograd.grad(logits[:, -1, 7].sum(), [read[early], read[late]])
    for site, gradient in zip((early, late), together, strict=True):
        alone = tiny.differentiable_logits(TOKENS, (site, keep(site)))
        torch.testing.assert_close(torch.autograd.grad(alone[:, -1, 7].sum(), read[site])[0], gradient)


def test_the_model_is_in_float32_within_the_block_only(short: TransformerLensModel):
    before = short.logits(TOKENS)
    assert before.dtype == torch.bfloat16
    with short.in_float32():
        within = short.logits(TOKENS)
        assert within.dtype == short.dtype == torch.float32
    assert short.dtype == torch.bfloat16
    assert torch.equal(short.logits(TOKENS), before)
    # The same weights, without the rounding of every product.
    assert 0 < (within - before.float()).norm() < 0.05 * within.norm()


def test_attention_has_a_pattern_and_the_values_of_every_head(tiny: TransformerLensModel):
    found = tiny.attention(TOKENS, 2)
    # Four heads, of which two share values.
    assert found.pattern.shape == (2, 4, 6, 6)
    assert found.values.shape == (2, 6, 4, 8)
    assert torch.equal(found.values[:, :, 0], found.values[:, :, 1])
    assert not torch.equal(found.values[:, :, 1], found.values[:, :, 2])
    torch.testing.assert_close(found.pattern.sum(3), torch.ones(2, 4, 6))
    assert not found.pattern.triu(1).any()
    z = tiny.activations(TOKENS, [Site(name=SiteName.attn_z, layer=2)])
    torch.testing.assert_close(found.outputs().flatten(2), *z.values())


def test_attention_of_a_layer_beyond_the_model_is_refused(tiny: TransformerLensModel):
    with pytest.raises(ValueError, match=r"has 4 layers"):
        tiny.attention(TOKENS, 9)


def test_sites_have_the_order_of_a_forward_pass():
    sites = [Site(name=name, layer=layer) for layer in (1, 0) for name in SiteName]
    names = [
        "resid_pre", "attn_normalized", "attn_in", "attn_z", "attn_out", "resid_mid", "mlp_normalized", "mlp_in",
        "mlp_out", "resid_post",
    ]  # fmt: skip
    ordered = sorted(sites, key=lambda site: site.place)
    assert [str(site) for site in ordered] == [f"{name}.{layer}" for layer in (0, 1) for name in names]

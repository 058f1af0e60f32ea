"""The site that is named when the sums between a block's activations do not hold."""

import pytest
import torch
from torch import Tensor

from fsae.language_models.residual_identities import unsound_sites
from fsae.language_models.sites import Site, SiteName

NAMES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


def stream(dtype: torch.dtype = torch.float32) -> dict[Site, Tensor]:
    """Two blocks that add up, with a token whose activations are a hundred times as long."""
    generator = torch.Generator().manual_seed(0)
    read: dict[Site, Tensor] = {}
    pre = torch.randn(1, 6, 16, generator=generator)
    pre[:, 0] *= 100
    pre = pre.to(dtype)
    for layer in range(2):
        attn, mlp = (0.1 * torch.randn(pre.shape, generator=generator).to(dtype) for _ in range(2))
        mid = pre + attn
        post = mid + mlp
        read |= {
            Site(name=SiteName(name), layer=layer): x
            for name, x in zip(NAMES, (pre, attn, mid, mlp, post), strict=True)
        }
        pre = post
    return read


def found(read: dict[Site, Tensor]) -> set[str]:
    return {str(site) for site in unsound_sites(read, 2)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_that_hold_up_to_rounding_name_no_site(dtype: torch.dtype):
    assert found(stream(dtype)) == set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", ["attn_out.1", "resid_mid.1", "mlp_out.1"])
def test_only_the_site_that_reads_another_tensor_is_named(wrong: str, dtype: torch.dtype):
    read = stream(dtype)
    read[Site.parse(wrong)] = torch.randn(1, 6, 16).to(dtype)
    assert found(read) == {wrong}


def test_a_stream_that_differs_from_the_next_blocks_input_is_named():
    read = stream()
    read[Site.parse("resid_pre.1")] = 2 * read[Site.parse("resid_pre.1")]
    assert {"resid_post.0", "resid_pre.1"} <= found(read)


def test_a_stream_normalised_after_each_sum_keeps_its_other_sites():
    read = stream()
    for layer in range(2):
        names = ("resid_pre", "resid_mid", "resid_post", "mlp_out", "attn_out")
        pre, mid, post, mlp, attn = (Site(name=SiteName(name), layer=layer) for name in names)
        read[mid] = torch.nn.functional.layer_norm(read[pre] + read[attn], (16,))
        read[post] = torch.nn.functional.layer_norm(read[mid] + read[mlp], (16,))
        if layer == 0:
            read[Site.parse("resid_pre.1")] = read[post]
    assert found(read) == {"resid_mid.0", "resid_mid.1"}


def test_parallel_blocks_add_up_without_resid_mid():
    read = {site: x for site, x in stream().items() if site.name is not SiteName.resid_mid}
    assert found(read) == set()
    read[Site.parse("mlp_out.0")] = 3 * read[Site.parse("mlp_out.0")]
    assert found(read) == {"attn_out.0", "mlp_out.0"}


def test_overflowed_values_name_no_site():
    read = stream(torch.float16)
    for site in ("resid_mid.1", "resid_post.1"):
        read[Site.parse(site)][:, 0] = float("inf")
    assert found(read) == set()

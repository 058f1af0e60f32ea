"""Checks that each site holds what its name means, by the sums that relate a block's activations."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.language_models.sites import Site, SiteName

# Tolerance for rounding of a sum: a multiple of the type's epsilon, but at least _LEAST, for float32.
_ROUNDINGS = 1.0
_LEAST = 1e-5


def unsound_sites(read: Mapping[Site, Float[Tensor, "sequence position d"]], num_layers: int) -> dict[Site, str]:
    """Return the sites that do not hold what their names mean, each with the reason.

    resid_mid is resid_pre + attn_out; resid_mid + mlp_out is resid_post, which is the next block's resid_pre. If
    attention and MLP are parallel there is no resid_mid, and resid_post is the sum of the other three. If one sum
    fails, the unsound site is the one that no other sum confirms. A model that normalises its stream after each sum
    has an attn_out and an mlp_out, but no stream between them that either adds up with.

    Args:
        read: the activations of one forward pass at all sites of the model; their widths are checked first.
        num_layers: number of blocks.
    """
    unsound: dict[Site, str] = {}
    for layer in range(num_layers):
        pre, mid, post, mlp, attn = (
            Site(name=name, layer=layer)
            for name in (
                SiteName.resid_pre, SiteName.resid_mid, SiteName.resid_post, SiteName.mlp_out, SiteName.attn_out
            )
        )  # fmt: skip
        after = Site(name=SiteName.resid_pre, layer=layer + 1)
        if is_not_sum(read, after, post):
            reason = f"{post} is not {after}, the stream that the next block reads"
            unsound |= {post: reason, after: reason}
        to_mid, to_post = is_not_sum(read, mid, pre, attn), is_not_sum(read, post, mid, mlp)
        if to_mid and to_post is False:
            unsound[attn] = f"it is not what {pre} lacks of {mid}"
        elif to_mid:
            unsound[mid] = f"it is not {pre} + {attn}"
        elif to_post:
            unsound[mlp] = f"it is not what {mid} lacks of {post}"
        if mid not in read and is_not_sum(read, post, pre, attn, mlp):
            unsound |= dict.fromkeys((attn, mlp), f"{pre} + {attn} + {mlp} is not {post}")
    return {site: reason for site, reason in unsound.items() if site in read}


def is_not_sum(read: Mapping[Site, Tensor], total: Site, *parts: Site) -> bool | None:
    """Return whether a site differs from the sum of others by more than rounding; None if one of them is absent."""
    if any(site not in read for site in (total, *parts)):
        return None
    terms = [read[site].double() for site in (total, *parts)]
    if len({term.shape for term in terms}) > 1:
        return True
    error = (terms[0] - sum(terms[1:])).norm(dim=-1)
    size = torch.stack([term.norm(dim=-1) for term in terms]).sum(0)
    tolerance = max(_LEAST, _ROUNDINGS * torch.finfo(read[total].dtype).eps)
    # Values that overflowed (float16) give no evidence about the site.
    finite = error.isfinite()
    return bool((error > tolerance * size)[finite].any())

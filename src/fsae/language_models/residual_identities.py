"""Whether sites are what their names say: the sums that hold between a block's activations."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.language_models.sites import Site, SiteName

# Rounding of a sum, as a multiple of the type's epsilon, beside what float32 itself leaves.
_ROUNDINGS = 1.0
_LEAST = 1e-5


def unsound_sites(read: Mapping[Site, Float[Tensor, "sequence position d"]], num_layers: int) -> dict[Site, str]:
    """The sites that are not what their names say, each with the reason.

    A resid_mid is resid_pre + attn_out, and with mlp_out it is resid_post, which is the next block's resid_pre. Where
    attention and MLP are parallel there is no resid_mid, and resid_post is the sum of all three. Where one sum does not
    hold, the site is named which no other sum confirms. A model that normalises its stream after each sum has an
    attn_out and an mlp_out, but no stream between them that either belongs to.

    Args:
        read: the activations of one forward pass at all sites that the model has; their widths are checked first.
        num_layers: blocks.
    """
    unsound: dict[Site, str] = {}
    for layer in range(num_layers):
        pre, mid, post, mlp, attn, _ = (Site(name=name, layer=layer) for name in SiteName)
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
    """Whether a site is not the sum of others, by more than rounding; None where one of them is not there."""
    if any(site not in read for site in (total, *parts)):
        return None
    terms = [read[site].double() for site in (total, *parts)]
    if len({term.shape for term in terms}) > 1:
        return True
    error = (terms[0] - sum(terms[1:])).norm(dim=-1)
    size = torch.stack([term.norm(dim=-1) for term in terms]).sum(0)
    tolerance = max(_LEAST, _ROUNDINGS * torch.finfo(read[total].dtype).eps)
    # What overflowed (float16) says nothing of the site.
    finite = error.isfinite()
    return bool((error > tolerance * size)[finite].any())

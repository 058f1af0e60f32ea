"""Massive activations: the few vectors of a language model whose norm is many times the norm of all others.

A handful of tokens, mostly attention sinks, can hold most of a site's variance. The fraction of variance unexplained
would then measure the reconstruction of these few vectors only (Sun et al., 2024, arXiv 2402.17762).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_ROWS_AT_ONCE = 65_536


def norms_of(vectors: Float[Tensor, "vectors d_in"]) -> Float[Tensor, " vectors"]:
    """Return the vectors' norms in float32, one part at a time: memory may not hold a second copy of a shard."""
    return torch.cat([part.float().norm(dim=1) for part in vectors.split(_ROWS_AT_ONCE)])


def norm_limit(vectors: Float[Tensor, "vectors d_in"], multiple: float) -> float:
    """Return the norm above which a vector is massive: a multiple of the median norm of these vectors."""
    return multiple * float(norms_of(vectors).median())


def within(vectors: Float[Tensor, "vectors d_in"], limit: float) -> Bool[Tensor, " vectors"]:
    """Return which vectors are not massive."""
    return norms_of(vectors) <= limit


def within_all(parts: Sequence[Float[Tensor, "vectors d"]], limits: Sequence[float]) -> Bool[Tensor, " vectors"]:
    """Return which rows of vectors at several sites are massive at none of them."""
    return torch.stack([within(part, limit) for part, limit in zip(parts, limits, strict=True)]).all(0)

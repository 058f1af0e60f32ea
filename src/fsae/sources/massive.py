"""Massive activations: the few vectors of a language model whose norm is many times that of all others.

A handful of tokens (attention sinks, mostly) can hold most of a site's variance, so that a fraction of variance
unexplained would say how these are reconstructed and nothing of the rest (Sun et al., 2024, arXiv 2402.17762).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_ROWS_AT_ONCE = 65_536


def norms_of(vectors: Float[Tensor, "vectors d_in"]) -> Float[Tensor, " vectors"]:
    """The vectors' norms in float32, a part at a time: a shard in float32 may not fit beside itself."""
    return torch.cat([part.float().norm(dim=1) for part in vectors.split(_ROWS_AT_ONCE)])


def norm_limit(vectors: Float[Tensor, "vectors d_in"], multiple: float) -> float:
    """The norm beyond which a vector is massive: a multiple of these vectors' median norm."""
    return multiple * float(norms_of(vectors).median())


def within(vectors: Float[Tensor, "vectors d_in"], limit: float) -> Bool[Tensor, " vectors"]:
    """Which vectors are not massive."""
    return norms_of(vectors) <= limit

"""Forward records with chosen codes and weights, for metrics computed by hand."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fsae.autoencoders.record import AffineMap, ForwardRecord
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern

CPU = torch.device("cpu")


def record_of(
    inputs: Sequence[Sequence[float]],
    codes: Sequence[Sequence[float]],
    W_dec: Sequence[Sequence[float]],
    *,
    sparse: bool = False,
) -> ForwardRecord:
    """A float32 record whose reconstruction is codes @ W_dec; its encoder is all zeros."""
    x, f, W = (torch.tensor(values, dtype=torch.float32) for values in (inputs, codes, W_dec))
    return ForwardRecord(
        inputs=x,
        pre_activations=AffineMap(x, torch.zeros(W.shape[1], W.shape[0]), torch.zeros(W.shape[0])),
        codes=sparse_codes(f) if sparse else Codes(f),
        reconstruction=f @ W,
        W_dec=W,
        b_dec=torch.zeros(W.shape[1]),
    )


def sparse_codes(f: Tensor) -> Codes:
    """The same codes holding their non-zero entries and one that is zero, as JumpReLU's hold some."""
    held = f != 0
    held[0, 0] = True
    return Codes(f[held], Pattern.of_mask(held))

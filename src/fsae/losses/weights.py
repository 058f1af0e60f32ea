"""Terms of the weights alone, whatever the batch is."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.autoencoders.record import ForwardRecord
from fsae.losses.term import LossTerm, Moment, TermValue
from fsae.matching import unit_rows
from fsae.ranges import COUNT, WEIGHT, between

# Rows whose cosines with all rows of their chunk are in memory at a time.
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class WeightNorm(LossTerm):
    """The sum of all squared entries of W_enc and W_dec (arXiv 2603.04198).

    If the decoder's rows are unit vectors, its part is the constant d_sae. `trainer.weight_decay` differs: it has the
    biases, too, and half the gradient, and is not logged.
    """

    weight: float = field(default=1e-4, metadata=WEIGHT)

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        assert record.W_enc is not None
        return TermValue(record.W_enc.square().sum() + record.W_dec.square().sum())


@dataclass(frozen=True, kw_only=True)
class Orthogonality(LossTerm):
    """The squared cosine of each decoder row with the nearest row of its chunk (OrtSAE, arXiv 2509.22033).

    (1/K) sum_c (1/|C_c|) sum_{i in C_c} max(0, max_{j in C_c, j != i} cos(d_i, d_j))^2, for a random partition of the
    latents into K equal chunks, which is drawn for each measurement. As printed in the paper, the maximum may be
    negative, so that opposite rows would be penalised if no other row is nearer; here it counts 0.

    Attributes:
        chunk: the most rows of a chunk, so that K = ceil(d_sae / chunk). The paper has 8192, which takes twice as long.
        every: steps between measurements in training. Those steps count this many times, and the others 0, so the mean
            over steps is the same for any number.
    """

    weight: float = field(default=0.25, metadata=WEIGHT)
    chunk: int = field(default=4096, metadata=between(least=2, most=2**28, meaning="a number of latents"))
    every: int = field(default=5, metadata=COUNT)

    of_decoder: ClassVar[bool] = True

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        # What is measured without training on it has no steps in between.
        every = self.every if torch.is_grad_enabled() else 1
        if moment.step % every:
            return TermValue(record.W_dec.new_zeros(()))
        order = torch.randperm(len(record.W_dec), generator=moment.generator)
        order = order.to(record.W_dec.device, non_blocking=True)
        rows = unit_rows(record.W_dec)
        chunks = order.tensor_split(math.ceil(len(order) / self.chunk))
        values = torch.stack([_squared_cosines(rows.index_select(0, chunk)).mean() for chunk in chunks])
        return TermValue(every * values.mean())


def _squared_cosines(rows: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
    """Return the squared cosine of each unit row with the nearest other one; 0 if it is negative or there is none."""
    if len(rows) == 1:
        return 0 * rows.sum(1)
    # A maximum has its gradient in one pair alone, so all other cosines are needed without gradient.
    return (rows * rows.index_select(0, nearest_rows(rows))).sum(1).clamp_min(0).square()


@torch.no_grad()
def nearest_rows(rows: Float[Tensor, "rows d"], rows_at_once: int = _ROWS_AT_ONCE) -> Int[Tensor, " rows"]:
    """Return the index of the other row with which each row has the largest product; each product is computed once.

    Args:
        rows: two or more.
        rows_at_once: rows whose products with all later ones are in memory at a time.
    """
    best = rows.new_full((len(rows),), -torch.inf)
    nearest = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for begin, end in pairwise([*range(0, len(rows), rows_at_once), len(rows)]):
        products = rows[begin:end] @ rows[begin:].T
        products[:, : end - begin].fill_diagonal_(-torch.inf)
        _improve(best[begin:end], nearest[begin:end], products.max(1), begin)
        if end < len(rows):
            _improve(best[end:], nearest[end:], products[:, end - begin :].max(0), begin)
    return nearest


def _improve(best: Tensor, nearest: Tensor, found: torch.return_types.max, first: int) -> None:
    """Replace maxima and their indices in place by larger ones that were found in a slice that begins at `first`."""
    better = found.values > best
    best.copy_(torch.where(better, found.values, best))
    nearest.copy_(torch.where(better, found.indices + first, nearest))

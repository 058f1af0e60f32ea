"""Matching of the rows of two dictionaries."""

from enum import Enum

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Matching(Enum):
    """Ways of pairing the directions of two dictionaries A and B.

    hungarian: the one-to-one assignment whose cosines have the largest sum, as in MFR's code.
    mean_max: each direction in A has the nearest direction in B as its partner; several may share a partner. This is
        the usual definition of MMCS (Sharkey et al. 2022); it is not symmetric.
    symmetric: mean_max from A to B and from B to A, averaged.
    """

    hungarian = "hungarian"
    mean_max = "mean_max"
    symmetric = "symmetric"


def partners(
    A: Float[Tensor, "n d"], B: Float[Tensor, "n d"], matching: Matching
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Return rows of A and the rows of their partners in B; A and B have unit rows."""
    cosines = A @ B.T
    if matching is Matching.hungarian:
        return assignment(cosines)
    rows, columns = torch.arange(len(A), device=A.device), cosines.argmax(1)
    if matching is Matching.symmetric:
        rows, columns = torch.cat([rows, cosines.argmax(0)]), torch.cat([columns, rows])
    return rows, columns


def assignment(alike: Float[Tensor, "n m"]) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Return rows and columns of the one-to-one assignment with the largest sum: min(n, m) pairs."""
    from scipy.optimize import linear_sum_assignment  # takes a quarter of a second, which --help need not wait for

    rows, columns = linear_sum_assignment(alike.cpu().numpy(), maximize=True)
    return torch.from_numpy(rows).to(alike.device), torch.from_numpy(columns).to(alike.device)


@torch.no_grad()
def mmcs(A: Float[Tensor, "n d"], B: Float[Tensor, "n d"], matching: Matching) -> float:
    """Return the mean cosine of partners, for directions of any length; 1 for two orders of one dictionary."""
    A, B = unit_rows(A), unit_rows(B)
    of_a, of_b = partners(A, B, matching)
    return (A[of_a] * B[of_b]).sum(1).mean().item()


def unit_rows(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return the same directions with length 1."""
    return torch.nn.functional.normalize(rows, dim=1)

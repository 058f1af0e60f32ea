"""Matching of the rows of two dictionaries."""

from enum import Enum

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Matching(Enum):
    """Whose partner a direction is.

    hungarian: the one-to-one assignment whose cosines have the largest sum. What MFR's code does.
    mean_max: of each direction in A the nearest in B, which may be the same one for several. The usual definition of
        MMCS (Sharkey et al. 2022); it is not symmetric.
    symmetric: that from A to B and from B to A, averaged.
    """

    hungarian = "hungarian"
    mean_max = "mean_max"
    symmetric = "symmetric"


def partners(
    A: Float[Tensor, "n d"], B: Float[Tensor, "n d"], matching: Matching
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Rows of A and their partners' rows in B; both of unit rows."""
    cosines = A @ B.T
    if matching is Matching.hungarian:
        return assignment(cosines)
    rows, columns = torch.arange(len(A), device=A.device), cosines.argmax(1)
    if matching is Matching.symmetric:
        rows, columns = torch.cat([rows, cosines.argmax(0)]), torch.cat([columns, rows])
    return rows, columns


def assignment(alike: Float[Tensor, "n m"]) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Rows and columns of the one-to-one assignment with the largest sum; as many pairs as the smaller side has."""
    from scipy.optimize import linear_sum_assignment  # a quarter of a second, which --help can do without

    rows, columns = linear_sum_assignment(alike.cpu().numpy(), maximize=True)
    return torch.from_numpy(rows).to(alike.device), torch.from_numpy(columns).to(alike.device)


@torch.no_grad()
def mmcs(A: Float[Tensor, "n d"], B: Float[Tensor, "n d"], matching: Matching) -> float:
    """Mean cosine of partners, directions of any length; 1 for a dictionary and itself in any order."""
    A, B = unit_rows(A), unit_rows(B)
    of_a, of_b = partners(A, B, matching)
    return (A[of_a] * B[of_b]).sum(1).mean().item()


def unit_rows(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The same directions, of length 1."""
    return torch.nn.functional.normalize(rows, dim=1)

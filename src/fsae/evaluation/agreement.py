"""What the members of a population have in common: how alike their features are, and which of them are shared."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.losses.mutual import Matching, assignment, mmcs, unit_rows

# Two features are the same one where their directions' cosine is above this (Paulo and Belrose 2025, arXiv 2501.16615).
SAME = 0.7


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far members found the same features.

    Attributes:
        scalars: by name: pw_mcc, the mean absolute cosine of one-to-one matched decoder rows over all pairs of members
            (arXiv 2505.20254); mmcs, the mean cosine of every row and the nearest in another member, over all ordered
            pairs; shared_share, of features that every member has.
        found_by: (members, d_sae) how many members have each feature, itself counted: where the one-to-one partner's
            cosine is above 0.7.
    """

    scalars: dict[str, float]
    found_by: Int[Tensor, "members d_sae"]


@torch.no_grad()
def agreement(decoders: Sequence[Float[Tensor, "d_sae d_in"]]) -> Agreement:
    """Compare the decoders of two or more members."""
    rows = [unit_rows(W.float()) for W in decoders]
    found_by = torch.ones(len(rows), len(rows[0]), dtype=torch.long)
    matched, nearest = [], []
    for a, b in combinations(range(len(rows)), 2):
        nearest.append(mmcs(rows[a], rows[b], Matching.symmetric))
        cosines = (rows[a] @ rows[b].T).abs()
        of_a, of_b = assignment(cosines)
        alike = cosines[of_a, of_b].cpu()
        matched.append(alike.mean().item())
        found_by[a, of_a.cpu()] += alike > SAME
        found_by[b, of_b.cpu()] += alike > SAME
    return Agreement(
        {
            "pw_mcc": sum(matched) / len(matched),
            "mmcs": sum(nearest) / len(nearest),
            "shared_share": (found_by == len(rows)).float().mean().item(),
        },
        found_by,
    )


def truth_by_sharing(
    found_by: Int[Tensor, "members d_sae"], nearest_cosine: Float[Tensor, "members d_sae"]
) -> dict[str, float]:
    """Whether features that members share are nearer to the truth: MFR's motivation.

    truth_of_shared and truth_of_single: mean cosine to the nearest true feature of latents that every member has, and
    of those that one has alone; NaN where there are none.
    """
    members = len(found_by)
    return {
        "truth_of_shared": nearest_cosine[found_by == members].mean().item(),
        "truth_of_single": nearest_cosine[found_by == 1].mean().item(),
    }

"""What the members of a population have in common: how alike their features are, and which of them are shared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.matching import Matching, assignment, mmcs, unit_rows

# Two features are the same one where their directions' cosine is above this (Paulo and Belrose 2025, arXiv 2501.16615).
SAME = 0.7


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far members found the same features.

    Attributes:
        scalars: by name: pw_mcc, the mean absolute cosine of one-to-one matched decoder rows over all pairs of members
            (arXiv 2505.20254); mmcs, the mean cosine of every row and the nearest in another member, over all ordered
            pairs; shared_share, of features that every member has, among latents that fire.
        found_by: (members, d_sae) how many members have each feature, itself counted: where the one-to-one partner's
            absolute cosine is above 0.7 and both fire. 0 for a latent that does not.
        closest: (members, d_sae) the largest absolute cosine of a latent and its one-to-one partner in another member,
            of those that fire.
    """

    scalars: dict[str, float]
    found_by: Int[Tensor, "members d_sae"]
    closest: Float[Tensor, "members d_sae"]


@torch.no_grad()
def agreement(
    decoders: Sequence[Float[Tensor, "d_sae d_in"]],
    firing: Sequence[Bool[Tensor, " d_sae"]],
    heartbeat: Callable[[], None] = lambda: None,
) -> Agreement:
    """Compare two or more members.

    Args:
        decoders: of each.
        firing: which latents of each fire; of others the decoder's rows say nothing about the data.
        heartbeat: called before each pair is matched; may raise to stop.
    """
    rows = [unit_rows(W.float()) for W in decoders]
    fires = torch.stack([each.cpu() for each in firing])
    found_by, closest = fires.long(), torch.zeros(fires.shape)
    matched, nearest = [], []
    for a, b in combinations(range(len(rows)), 2):
        heartbeat()
        nearest.append(mmcs(rows[a], rows[b], Matching.symmetric))
        cosines = (rows[a] @ rows[b].T).abs()
        pairs = assignment(cosines)
        alike = cosines[pairs].cpu()
        matched.append(alike.mean().item())
        of_a, of_b = (each.cpu() for each in pairs)
        both_fire = fires[a, of_a] & fires[b, of_b]
        for member, latents in ((a, of_a), (b, of_b)):
            found_by[member, latents] += both_fire & (alike > SAME)
            closest[member, latents] = torch.maximum(closest[member, latents], alike * both_fire)
    return Agreement(
        {
            "pw_mcc": sum(matched) / len(matched),
            "mmcs": sum(nearest) / len(nearest),
            "shared_share": ((found_by == len(rows)).sum() / fires.sum().clamp_min(1)).item(),
        },
        found_by,
        closest,
    )


def truth_by_sharing(compared: Agreement, nearest_cosine: Float[Tensor, "members d_sae"]) -> dict[str, float]:
    """Whether features that members share are nearer to the truth: MFR's motivation. Of latents that fire:

    truth_of_shared and truth_of_single, the mean cosine to the nearest true feature of those that every member has, and
    of those that one has alone, NaN where there are none; truth_rank_correlation, Spearman's, of that cosine and how
    close the closest partner is, which needs no bound between shared and not.
    """
    fires = compared.found_by > 0
    ranks = [_ranks(each[fires]) for each in (compared.closest, nearest_cosine)]
    return {
        "truth_of_shared": nearest_cosine[compared.found_by == len(fires)].mean().item(),
        "truth_of_single": nearest_cosine[compared.found_by == 1].mean().item(),
        "truth_rank_correlation": torch.corrcoef(torch.stack(ranks))[0, 1].item(),
    }


def _ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """From 1 on; equal values share their mean rank."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts.double() - 1) / 2)[place]

"""`agreement`: the similarity of the latents of a population's members, and the latents that members share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.subject import Examined, Subject
from fsae.evaluation.truth import TruthScores
from fsae.evaluation.vectors import VectorEvaluation
from fsae.matching import Matching, assignment, mmcs, unit_rows
from fsae.outputs.results import Better, Meaning, Shown

# Two features are the same one if their directions' cosine is above this (Paulo and Belrose 2025, arXiv 2501.16615).
SAME = 0.7


@dataclass(frozen=True, eq=False)
class Shared:
    """The extent to which members found the same features.

    Attributes:
        scalars: by name: pw_mcc, the mean absolute cosine of one-to-one matched decoder rows over all pairs of members
            (arXiv 2505.20254); mmcs, the mean cosine of every row and the nearest in another member, over all ordered
            pairs; shared_share, the share of firing latents that every member has.
        found_by: (members, d_sae) the number of members that have each latent's feature, its own member included.
            Another member has it if the one-to-one partner's absolute cosine is above 0.7 and both latents fire.
            0 for a latent that never fires.
        closest: (members, d_sae) the largest absolute cosine of a latent and its one-to-one partner in another member,
            if both fire.
    """

    scalars: dict[str, float]
    found_by: Int[Tensor, "members d_sae"]
    closest: Float[Tensor, "members d_sae"]


@torch.no_grad()
def agreement(
    decoders: Sequence[Float[Tensor, "d_sae d_in"]],
    firing: Sequence[Bool[Tensor, " d_sae"]],
    heartbeat: Callable[[], None] = lambda: None,
) -> Shared:
    """Compare two or more members.

    Args:
        decoders: the decoder of each member.
        firing: whether each latent of each member fires; the decoder row of a latent that never fires carries no
            information about the data.
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
    return Shared(
        {
            "pw_mcc": sum(matched) / len(matched),
            "mmcs": sum(nearest) / len(nearest),
            "shared_share": ((found_by == len(rows)).sum() / fires.sum().clamp_min(1)).item(),
        },
        found_by,
        closest,
    )


def truth_by_sharing(compared: Shared, nearest_cosine: Float[Tensor, "members d_sae"]) -> dict[str, float]:
    """Compare the true-feature cosines of shared latents and of single ones, among latents that fire.

    MFR assumes that features which members share are nearer to the truth.

    truth_of_shared: mean cosine to the nearest true feature, over latents that every member has; NaN without any.
    truth_of_single: the same mean over latents that one member alone has; NaN without any.
    truth_rank_correlation: Spearman's correlation of that cosine and the cosine of the closest partner; unlike the two
        means it needs no threshold for "shared".
    """
    fires = compared.found_by > 0
    ranks = [_ranks(each[fires]) for each in (compared.closest, nearest_cosine)]
    return {
        "truth_of_shared": nearest_cosine[compared.found_by == len(fires)].mean().item(),
        "truth_of_single": nearest_cosine[compared.found_by == 1].mean().item(),
        "truth_rank_correlation": torch.corrcoef(torch.stack(ranks))[0, 1].item(),
    }


def _ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return ranks from 1 on; equal values share their mean rank."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts.double() - 1) / 2)[place]


@dataclass(frozen=True, kw_only=True)
class Agreement(Evaluation, group="eval.agreement"):
    """The similarity of a population's members, and of shared latents to the truth."""

    needs: ClassVar[frozenset[str]] = frozenset({"members", "vectors"})
    reads: ClassVar[frozenset[str]] = frozenset({"truth"})
    meanings: ClassVar[dict[str, Meaning]] = {
        "pw_mcc": Meaning("cosine of matched latents of two members", better=Better.more),
        "shared_share": Meaning("share of firing latents that every member has", better=Better.more),
        "mmcs": Meaning("cosine of a latent and the nearest in another member", better=Better.more, shown=Shown.files),
        "truth_of_shared": Meaning(
            "cosine with the truth of latents that all members have",
            better=Better.more,
            shown=Shown.files,
        ),
        "truth_of_single": Meaning(
            "cosine with the truth of latents that one member has",
            better=Better.more,
            shown=Shown.files,
        ),
        "truth_rank_correlation": Meaning("rank correlation of being shared and being true", shown=Shown.files),
    }

    def measure(self, subject: Subject) -> list[Measured]:
        """Return each population's numbers; a run of one autoencoder has none."""
        vectors, truths = subject.found(VectorEvaluation), subject.found(TruthScores)
        assert vectors is not None
        known = [[] for _ in subject.runs] if truths is None else subject.by_run(truths)
        return [
            _of_run(run, [each.density > 0 for each in own], scores, subject.heartbeat)
            for run, own, scores in zip(subject.runs, subject.by_run(vectors), known, strict=True)
        ]


def _of_run(
    run: Examined, firing: Sequence[Tensor], truths: Sequence[TruthScores], heartbeat: Callable[[], None]
) -> Measured:
    if len(run.autoencoders) == 1:
        return Measured()
    compared = agreement([each.W_dec for each in run.autoencoders], firing, heartbeat)
    numbers = dict(compared.scalars)
    sharing: dict[str, Any] = {"found_by": compared.found_by.tolist(), "closest": compared.closest.tolist()}
    if truths:
        nearest = torch.stack([each.nearest_cosine for each in truths])
        numbers |= truth_by_sharing(compared, nearest)
        sharing["nearest_cosine"] = nearest.tolist()
    return Measured(shared=numbers, files={"sharing.json": sharing}, pictures={"sharing.png": _drawn(sharing)})


def _drawn(sharing: dict[str, Any]) -> Callable[[Path], None]:
    from fsae.analysis.run_plots import plot_sharing

    return partial(plot_sharing, sharing)

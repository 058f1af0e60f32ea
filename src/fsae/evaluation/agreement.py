"""`agreement`: how alike the latents of a population's members are, and which latents the members share."""

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

# Two features are the same one where their directions' cosine is above this (Paulo and Belrose 2025, arXiv 2501.16615).
SAME = 0.7


@dataclass(frozen=True, eq=False)
class Shared:
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
) -> Shared:
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


@dataclass(frozen=True, kw_only=True)
class Agreement(Evaluation, group="eval.agreement"):
    """How far a population's members found the same latents, and whether shared latents are nearer to the truth."""

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
        """Return each population's numbers; nothing for a run of one autoencoder."""
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

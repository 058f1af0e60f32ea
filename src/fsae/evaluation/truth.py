"""`truth`: scores of autoencoders against known features."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.subject import Subject
from fsae.matching import assignment, unit_rows
from fsae.outputs.results import Better, Meaning, Shown
from fsae.ranges import COUNT
from fsae.sparse.codes import Codes


@dataclass(frozen=True, eq=False)
class TruthScores:
    """One autoencoder's scores, over the true features that occur in the held-out samples.

    Attributes:
        scalars: by name. mcc: mean absolute cosine of decoder rows and true features under the best one-to-one
            assignment. mmcs_truth: mean over true features of the nearest decoder row's absolute cosine, a recall of
            features. mmcs_latents: mean over decoder rows of the nearest true feature's absolute cosine, a precision of
            latents. uniqueness: distinct true features among those nearest to each latent, over the number of
            latents. precision, recall, f1: of each latent as a detector of the true feature nearest to it, averaged
            over latents; a dead latent counts 0. true_l0: true features per sample.
        nearest_cosine: (d_sae,) the nearest true feature's absolute cosine.
    """

    scalars: dict[str, float]
    nearest_cosine: Float[Tensor, " d_sae"]


class _Detection:
    """Counts of the samples in which each latent fired and its feature was present."""

    def __init__(self, autoencoder: Autoencoder, truth: Tensor, occurring: Tensor):
        self._autoencoder, self._truth = autoencoder, truth
        self._nearest = occurring[self._cosines().argmax(1)]
        self._both = torch.zeros(autoencoder.d_sae, dtype=torch.float64, device=truth.device)
        self._fired, self._there = self._both.clone(), self._both.clone()

    def add(self, x: Tensor, present: Tensor) -> None:
        fired = (self._autoencoder(x, True).codes.dense() != 0).double()
        there = present[:, self._nearest].double()
        self._both += (fired * there).sum(0)
        self._fired += fired.sum(0)
        self._there += there.sum(0)

    def scores(self) -> TruthScores:
        cosines = self._cosines()
        return TruthScores(
            {
                "mcc": cosines[assignment(cosines)].mean().item(),
                "mmcs_truth": cosines.amax(0).mean().item(),
                "mmcs_latents": cosines.amax(1).mean().item(),
                "uniqueness": len(self._nearest.unique()) / len(self._nearest),
                "precision": (self._both / self._fired.clamp_min(1)).mean().item(),
                "recall": (self._both / self._there.clamp_min(1)).mean().item(),
                "f1": (2 * self._both / (self._fired + self._there).clamp_min(1)).mean().item(),
            },
            cosines.amax(1).cpu(),
        )

    def _cosines(self) -> Float[Tensor, "d_sae true"]:
        # The cosines are not kept: for many autoencoders they would be most of the memory.
        return (unit_rows(self._autoencoder.W_dec.double()) @ self._truth.T).abs()


@torch.no_grad()
def evaluate_truth(
    autoencoders: Sequence[Autoencoder],
    features: Float[Tensor, "true d_in"],
    samples: Iterable[Codes],
    vectors: Callable[[Codes], Float[Tensor, "some d_in"]],
) -> list[TruthScores]:
    """Return each autoencoder's scores on held-out samples.

    Args:
        autoencoders: in eval mode and in raw units.
        features: directions, of any length.
        samples: coefficients (batch, true) of the samples.
        vectors: makes samples of coefficients.
    """
    batches = list(samples)
    occurrences = sum(codes.firing_counts for codes in batches)
    assert isinstance(occurrences, Tensor)
    device = autoencoders[0].W_dec.device
    occurring = (occurrences > 0).nonzero().squeeze(1).to(device)
    truth = unit_rows(features.to(device)[occurring].double())
    detections = [_Detection(each, truth, occurring) for each in autoencoders]
    for codes in batches:
        present = (codes.dense() != 0).to(device)
        x = vectors(codes).to(autoencoders[0].W_dec)
        for detection in detections:
            detection.add(x, present)
    true_l0 = sum(int(codes.firing_counts.sum()) for codes in batches) / sum(codes.shape[0] for codes in batches)
    truths = [detection.scores() for detection in detections]
    for each in truths:
        each.scalars["true_l0"] = true_l0
    return truths


@dataclass(frozen=True, kw_only=True)
class Truth(Evaluation, group="eval.truth"):
    """Scores against the known features of synthetic data.

    Attributes:
        samples: held-out samples.
    """

    samples: int = field(default=32768, metadata=COUNT)

    needs: ClassVar[frozenset[str]] = frozenset({"known_features"})
    meanings: ClassVar[dict[str, Meaning]] = {
        "mcc": Meaning("cosine of true features and the latents matched to them", better=Better.more),
        "f1": Meaning("f1 of latents as detectors of the nearest feature", better=Better.more),
        "mmcs_truth": Meaning("cosine of a true feature and the nearest latent", better=Better.more, shown=Shown.files),
        "mmcs_latents": Meaning(
            "cosine of a latent and the nearest true feature", better=Better.more, shown=Shown.files
        ),
        "uniqueness": Meaning(
            "distinct true features nearest to latents, per latent",
            better=Better.more,
            shown=Shown.files,
        ),
        "precision": Meaning(
            "precision of latents as detectors of the nearest feature",
            better=Better.more,
            shown=Shown.files,
        ),
        "recall": Meaning(
            "recall of latents as detectors of the nearest feature", better=Better.more, shown=Shown.files
        ),
        "true_l0": Meaning("true features per sample", shown=Shown.files),
    }

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's scores, and keep them for later evaluations."""
        truth = subject.source.truth
        assert truth is not None
        samples = subject.beating(truth.held_out_codes(self.samples))
        scores = evaluate_truth(subject.autoencoders, truth.features, samples, truth.vectors)
        subject.keep(scores)
        return [Measured([each.scalars for each in own]) for own in subject.by_run(scores)]

"""k-sparse probing: how well a label is predicted from the k columns that differ most between its classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from fsae.evaluation.downstream.latent_scores import largest, mean_differences, normalised_mean_differences
from fsae.evaluation.downstream.probe import Fit, Probe, auc, best_probe, fit_probe
from fsae.evaluation.downstream.splits import Split

if TYPE_CHECKING:
    from fsae.evaluation.downstream.probe import Columns


class Protocol(Enum):
    """The way in which a text becomes one vector, latents are chosen, and a probe is fitted and scored.

    Attributes:
        sae_probes: the last token; latents by their difference of means over their mean size; the strength of the
            regularisation by validation; the area under the ROC curve (sae-probes 0.4).
        saebench: the mean of all tokens' codes; latents by their difference of means; L2 of strength 1; accuracy
            (SAEBench's own sparse probing).
    """

    sae_probes = "sae_probes"
    saebench = "saebench"

    @property
    def metric(self) -> str:
        """Return the name of the score of a probe."""
        return "auc" if self is Protocol.sae_probes else "accuracy"


@dataclass(frozen=True, kw_only=True)
class KSparse:
    """k-sparse probing by one protocol.

    Attributes:
        protocol: how columns are chosen and probes are fitted and scored.
        counts: the values of k.
        fit: regularisation and solver of `Protocol.sae_probes`.
        seed: of the solver.
    """

    protocol: Protocol = Protocol.sae_probes
    counts: Sequence[int]
    fit: Fit = Fit.l1
    seed: int = 0

    def chosen(self, columns: "Columns", labels: Int[np.ndarray, " rows"], count: int) -> Int[np.ndarray, " k"]:
        """Return the columns that differ most between the classes, the best first."""
        scores = normalised_mean_differences if self.protocol is Protocol.sae_probes else mean_differences
        return largest(scores(columns, labels), count)

    def fitted(self, columns: "Columns", labels: Int[np.ndarray, " rows"]) -> Probe:
        """Return the probe of chosen columns."""
        if self.protocol is Protocol.sae_probes:
            return best_probe(columns, labels, self.fit, self.seed)
        return fit_probe(columns, labels, Fit.l2_lbfgs)

    def score(self, probe: Probe, columns: "Columns", labels: Int[np.ndarray, " rows"]) -> float:
        """Return the score of a probe on test rows."""
        if self.protocol is Protocol.sae_probes:
            return auc(probe.scores(columns), labels)
        return probe.accuracy(columns, labels)

    def probes(self, columns: "Columns", labels: Int[np.ndarray, " rows"]) -> list[tuple[Int[np.ndarray, " k"], Probe]]:
        """Return for each k the columns that are read and the probe of them.

        If there are fewer than k columns, the probe reads all of them.

        Args:
            columns: (rows, columns) of the training rows.
            labels: of the training rows.
        """
        order = self.chosen(columns, labels, max(self.counts))
        dense = _dense(columns[:, order])
        return [(order[:k], self.fitted(dense[:, :k], labels)) for k in self.counts]

    def of_latents(self, columns: "Columns", labels: Int[np.ndarray, " rows"], split: Split) -> list[float]:
        """Return the score for each k; columns are chosen and probes are fitted on the training rows only.

        Args:
            columns: (rows, columns).
            labels: of the rows.
            split: of the rows.
        """
        tested = columns[split.test]
        return [
            self.score(probe, _dense(tested[:, chosen]), labels[split.test])
            for chosen, probe in self.probes(columns[split.train], split.labels)
        ]

    def of_all(
        self,
        columns: "Columns",
        labels: Int[np.ndarray, " rows"],
        split: Split,
        fitted: Callable[["Columns", Int[np.ndarray, " rows"]], Probe],
    ) -> list[float]:
        """Return the score, as a list of one, of a probe of all columns, fitted by a function."""
        probe = fitted(columns[split.train], split.labels)
        return [self.score(probe, columns[split.test], labels[split.test])]


def difference_probe(columns: "Columns", labels: Int[np.ndarray, " rows"]) -> Probe:
    """Return the probe along the difference of means, with its threshold half way between them."""
    first, second = (np.asarray(columns[labels == label].mean(0)).ravel() for label in (0, 1))
    weights = second - first
    bias = -float(weights @ (first + second)) / 2
    return Probe(weights, bias, 1.0, auc(np.asarray(columns @ weights).ravel(), labels))


# A probe of all dimensions at the site, and one of tokens or words.
residual_probe = partial(best_probe, fit=Fit.l2)
words_probe = partial(fit_probe, fit=Fit.l2)


def _dense(columns: "Columns") -> np.ndarray:
    return (columns if isinstance(columns, np.ndarray) else columns.toarray()).astype(np.float64)

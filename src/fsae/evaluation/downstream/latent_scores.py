"""Scores by which latents are chosen for a label: how far their codes differ between two classes."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from fsae.evaluation.downstream.probe import Columns

# Columns that are ranked at once.
_AT_ONCE = 1024
# Added to divisors by sae-probes, so that a latent that is never on divides by no zero.
_LEAST = 1e-6


def mean_differences(columns: "Columns", labels: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " columns"]:
    """Return the mean over the rows of class 1 minus the mean over those of class 0, as SAEBench ranks latents.

    Args:
        columns: (rows, columns).
        labels: 0 or 1; both occur.
    """
    weights = np.where(labels == 1, 1 / (labels == 1).sum(), -1 / (labels == 0).sum())
    return np.asarray(columns.T @ weights).ravel()


def normalised_mean_differences(columns: "Columns", labels: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " columns"]:
    """Return the difference of means over a latent's mean size while it is on, as sae-probes ranks latents.

    A latent with large codes does not come first for its unit alone.

    Args:
        columns: (rows, columns).
        labels: 0 or 1; both occur.
    """
    sums = np.asarray(abs(columns).sum(0)).ravel()
    on = np.asarray(abs(columns).astype(bool).sum(0)).ravel()
    return mean_differences(columns, labels) / (sums / (on + _LEAST) + _LEAST)


def aucs(columns: "Columns", labels: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " columns"]:
    """Return the area under the ROC curve of each column by itself as a score of class 1.

    Args:
        columns: (rows, columns).
        labels: 0 or 1; both occur.
    """
    from scipy.stats import rankdata

    positive = labels == 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    assert positives
    assert negatives
    assert columns.shape is not None
    found = np.empty(columns.shape[1])
    for begin in range(0, len(found), _AT_ONCE):
        part = columns[:, begin : begin + _AT_ONCE]
        dense = part if isinstance(part, np.ndarray) else part.toarray()
        found[begin : begin + _AT_ONCE] = rankdata(dense, axis=0)[positive].sum(0)
    return (found - positives * (positives + 1) / 2) / (positives * negatives)


def largest(scores: Float[np.ndarray, " columns"], count: int) -> Int[np.ndarray, " count"]:
    """Return the columns with the largest scores in size, the largest first; of equal ones the first."""
    return np.argsort(-np.abs(scores), kind="stable")[:count]

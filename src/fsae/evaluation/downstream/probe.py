"""A probe: logistic regression from codes or activations to a label of two classes, and the area under its curve."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    # Rows are texts or tokens, columns are latents, dimensions or words.
    Columns: TypeAlias = np.ndarray | csr_array

# The strengths of which sae-probes chooses one, the weakest regularisation first.
STRENGTHS = tuple(np.logspace(5, -5, 10).tolist())
# The intercept's weight among liblinear's columns: the greater, the less of it is regularised.
_INTERCEPT = 100.0


class Fit(Enum):
    """The regularisation of a probe and the solver.

    Attributes:
        l1: L1 by coordinate descent (liblinear), whose optimum is that of `l1_saga`, in a tenth of the time.
        l1_saga: L1 as sae-probes has it: saga with at most 1,000 passes, which may end before the optimum.
        l2: L2 by Newton's method.
        l2_lbfgs: L2 as sae-probes and SAEBench have it: L-BFGS with at most 1,000 steps.
    """

    l1 = "l1"
    l1_saga = "l1_saga"
    l2 = "l2"
    l2_lbfgs = "l2_lbfgs"


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of two classes.

    Attributes:
        weights: of each column.
        bias: the intercept.
        strength: the inverse of the regularisation, which scikit-learn names C.
        validation_auc: the area under the ROC curve by which the strength was chosen; on the training rows if there
            were too few rows to choose by.
    """

    weights: Float[np.ndarray, " columns"]
    bias: float
    strength: float
    validation_auc: float

    def scores(self, columns: "Columns") -> Float[np.ndarray, " rows"]:
        """Return the logit of the second class for each row."""
        return np.asarray(columns @ self.weights).ravel() + self.bias

    def accuracy(self, columns: "Columns", labels: Int[np.ndarray, " rows"]) -> float:
        """Return the share of rows whose class is predicted right."""
        return float(((self.scores(columns) > 0) == (labels == 1)).mean())


@contextmanager
def one_core() -> Iterator[None]:
    """Let products of matrices take one core, for many small probes: several cores would wait for each other."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def auc(scores: Float[np.ndarray, " rows"], labels: Int[np.ndarray, " rows"]) -> float:
    """Return the area under the ROC curve: the chance that a row of class 1 scores above one of class 0; ties half.

    Args:
        scores: of each row.
        labels: 0 or 1; both occur.
    """
    from scipy.stats import rankdata

    positives = int((labels == 1).sum())
    negatives = len(labels) - positives
    assert positives
    assert negatives
    above = float(rankdata(scores)[labels == 1].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def fit_probe(
    columns: "Columns", labels: Int[np.ndarray, " rows"], fit: Fit = Fit.l2, strength: float = 1.0, seed: int = 0
) -> Probe:
    """Return the probe of one strength of regularisation.

    The intercept is not regularised. With `Fit.l2` more columns than rows cost no more than as many columns as rows:
    the weights are a sum of the rows, so they are found in the space of the rows.

    Args:
        columns: (rows, columns).
        labels: 0 or 1; both occur.
        fit: regularisation and solver.
        strength: the inverse of the regularisation (scikit-learn's C).
        seed: of solvers that visit rows or columns in random order.
    """
    turned, basis = _in_space_of_rows(columns) if fit is Fit.l2 else (columns, None)
    weights, bias = _solved(turned, labels, fit, strength, seed)
    if basis is not None:
        weights = basis @ weights
    return Probe(weights, bias, strength, auc(np.asarray(columns @ weights).ravel(), labels))


def best_probe(columns: "Columns", labels: Int[np.ndarray, " rows"], fit: Fit = Fit.l1, seed: int = 0) -> Probe:
    """Return the probe whose strength of regularisation has the greatest area under the ROC curve on validation rows.

    The choice is that of sae-probes (Kantamneni et al. 2025, arXiv 2502.16681), `find_best_reg`: ten strengths from 1e5
    to 1e-5. Of 128 rows and more the last fifth validates, but not more than 100 rows; of fewer rows each of six
    stratified parts in turn; of 12 and fewer each pair of rows of both classes. The first of equally good strengths is
    taken. Then the probe is fitted to all rows. Three rows and fewer have the strength 1.

    Args:
        columns: (rows, columns).
        labels: 0 or 1; both occur.
        fit: regularisation and solver.
        seed: of the parts, and of solvers that visit rows or columns in random order.
    """
    turned, basis = _in_space_of_rows(columns) if fit is Fit.l2 else (columns, None)
    strength, validation = 1.0, None
    if len(labels) > 3:
        means = [_validated(turned, labels, fit, each, seed) for each in STRENGTHS]
        validation, strength = max(means), STRENGTHS[int(np.argmax(means))]
    # saga visits rows in an order that depends on their places.
    order = np.random.RandomState(seed).permutation(len(labels))
    weights, bias = _solved(turned[order], labels[order], fit, strength, seed)
    if basis is not None:
        weights = basis @ weights
    if validation is None:
        validation = auc(np.asarray(columns @ weights).ravel(), labels)
    return Probe(weights, bias, strength, float(validation))


def _validated(columns: "Columns", labels: np.ndarray, fit: Fit, strength: float, seed: int) -> float:
    """Return the mean area under the ROC curve on the validation rows."""
    found = []
    for train, validation in _splits(labels, seed):
        if len(np.unique(labels[train])) < 2:
            found.append(0.5)
            continue
        weights, bias = _solved(columns[train], labels[train], fit, strength, seed)
        found.append(auc(np.asarray(columns[validation] @ weights).ravel() + bias, labels[validation]))
    return float(np.mean(found))


def _splits(labels: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield training and validation rows; the latter are of both classes."""
    from sklearn.model_selection import LeavePOut, StratifiedKFold

    rows = np.arange(len(labels))
    if len(rows) >= 128:
        first = len(rows) - min(len(rows) // 5, 100)
        parts = [(rows[:first], rows[first:])]
    elif len(rows) > 12:
        parts = StratifiedKFold(6, shuffle=True, random_state=seed).split(rows, labels)
    else:
        parts = LeavePOut(2).split(rows)
    yield from ((train, validation) for train, validation in parts if len(np.unique(labels[validation])) == 2)


def _solved(
    columns: "Columns", labels: np.ndarray, fit: Fit, strength: float, seed: int
) -> tuple[Float[np.ndarray, " columns"], float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    more: dict[str, Any] = {
        Fit.l1: {"l1_ratio": 1, "solver": "liblinear", "intercept_scaling": _INTERCEPT},
        Fit.l1_saga: {"l1_ratio": 1, "solver": "saga"},
        Fit.l2: {"solver": "newton-cholesky"},
        Fit.l2_lbfgs: {"solver": "lbfgs"},
    }[fit]
    # liblinear at its own limit: without regularisation it would take most of the time and change no ranking.
    passes = 100 if fit is Fit.l1 else 1000
    model = LogisticRegression(C=strength, max_iter=passes, random_state=seed, **more)
    with warnings.catch_warnings():
        # With hardly any regularisation no solver converges on classes that a plane separates; the ranking is settled.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(columns, labels)
    return np.asarray(model.coef_)[0].astype(np.float64), float(np.ravel(model.intercept_)[0])


def _in_space_of_rows(columns: "Columns") -> tuple["Columns", Float[np.ndarray, "columns rows"] | None]:
    """Return the same rows in an orthonormal basis of the space that they span, and the basis; None if it is wider."""
    if columns.shape is None or columns.shape[1] <= columns.shape[0] or not isinstance(columns, np.ndarray):
        return columns, None
    basis, turned = np.linalg.qr(columns.T.astype(np.float64))
    return turned.T, basis

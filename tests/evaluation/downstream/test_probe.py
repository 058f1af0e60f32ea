import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from fsae.evaluation.downstream.probe import STRENGTHS, Fit, Probe, auc, best_probe, fit_probe


def some_rows(rows: int = 160, columns: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Columns of which the first two differ between the classes, with zeros as codes have them."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(rows) % 2)
    values = generator.normal(size=(rows, columns))
    values[:, :2] += labels[:, None]
    return np.maximum(values, 0), labels


def loss(probe: Probe, columns: np.ndarray, labels: np.ndarray, l1: bool) -> float:
    margins = probe.scores(columns) * (2 * labels - 1)
    size = np.abs(probe.weights).sum() if l1 else (probe.weights**2).sum() / 2
    return probe.strength * np.logaddexp(0, -margins).sum() + size


def test_the_area_counts_pairs():
    # Pairs of a positive and a negative: 3 > 1, 3 > 2, 2 > 1, and 2 = 2 counts half.
    assert auc(np.array([1.0, 2, 2, 3]), np.array([0, 0, 1, 1])) == 3.5 / 4


def test_the_area_is_that_of_scikit_learn():
    columns, labels = some_rows()
    for each in columns.T:
        assert auc(each, labels) == pytest.approx(roc_auc_score(labels, each), abs=1e-12)


@pytest.mark.parametrize("strength", [0.03, 1.0, 30.0])
def test_coordinate_descent_finds_the_optimum_of_saga(strength: float):
    columns, labels = some_rows()
    fast = fit_probe(columns, labels, Fit.l1, strength)
    slow = fit_probe(columns, labels, Fit.l1_saga, strength)
    assert loss(fast, columns, labels, l1=True) == pytest.approx(loss(slow, columns, labels, l1=True), rel=1e-3)


@pytest.mark.parametrize("columns", [6, 300])
def test_newton_finds_the_optimum_of_lbfgs_in_any_width(columns: int):
    rows, labels = some_rows(columns=columns)
    fast, slow = (fit_probe(rows, labels, fit, 0.1) for fit in (Fit.l2, Fit.l2_lbfgs))
    np.testing.assert_allclose(fast.weights, slow.weights, atol=2e-3)
    assert loss(fast, rows, labels, l1=False) <= loss(slow, rows, labels, l1=False) + 1e-6


@pytest.mark.parametrize("fit", Fit)
def test_codes_may_be_sparse(fit: Fit):
    columns, labels = some_rows()
    dense, sparse = (best_probe(each, labels, fit) for each in (columns, csr_array(columns)))
    assert dense.strength == sparse.strength
    # saga visits sparse rows in another way and ends before the optimum.
    tolerance = 0.2 if fit is Fit.l1_saga else 0.02
    np.testing.assert_allclose(dense.scores(columns), sparse.scores(csr_array(columns)), atol=tolerance)


@pytest.mark.parametrize("rows", [2, 3, 8, 40, 160])
def test_the_strength_is_the_best_on_validation_rows(rows: int):
    columns, labels = some_rows(rows)
    found = best_probe(columns, labels, Fit.l2)
    assert found.strength in (*STRENGTHS, 1.0)
    if rows == 160:
        validated = [fit_probe(columns[:128], labels[:128], Fit.l2, each) for each in STRENGTHS]
        areas = [auc(each.scores(columns[128:]), labels[128:]) for each in validated]
        assert found.strength == STRENGTHS[int(np.argmax(areas))]
        assert found.validation_auc == pytest.approx(max(areas))
        assert auc(found.scores(columns), labels) > 0.7


def test_accuracy_is_the_share_that_is_right():
    probe = Probe(np.array([1.0]), -1.0, 1.0, 1.0)
    assert probe.accuracy(np.array([[0.0], [2], [3], [0]]), np.array([0, 1, 0, 1])) == 0.5

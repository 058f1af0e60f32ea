import numpy as np
import pytest
from scipy.sparse import csr_array

from fsae.evaluation.downstream.latent_scores import aucs, largest, mean_differences, normalised_mean_differences
from fsae.evaluation.downstream.probe import auc

CODES = np.array([[0.0, 8, 0], [2, 0, 0], [4, 0, 0], [0, 4, 0]])
LABELS = np.array([0, 1, 1, 0])

either = pytest.mark.parametrize("codes", [CODES, csr_array(CODES)], ids=["dense", "sparse"])


@either
def test_mean_difference(codes):
    np.testing.assert_allclose(mean_differences(codes, LABELS), [3, -6, 0])


@either
def test_normalised_difference_is_over_the_mean_size_of_codes_that_are_on(codes):
    # Mean sizes 3 and 6.
    np.testing.assert_allclose(normalised_mean_differences(codes, LABELS), [1, -1, 0], atol=1e-5)


@either
def test_area_of_each_latent(codes):
    assert aucs(codes, LABELS).tolist() == [1, 0, 0.5]


def test_areas_are_those_of_single_columns():
    generator = np.random.default_rng(0)
    codes = np.maximum(generator.normal(size=(40, 1500)), 0)
    labels = np.arange(40) % 2
    np.testing.assert_allclose(aucs(csr_array(codes), labels), [auc(each, labels) for each in codes.T])


def test_the_largest_are_by_size_and_the_first_of_equal_ones():
    assert largest(np.array([1.0, -3, 2, 3]), 3).tolist() == [1, 3, 2]

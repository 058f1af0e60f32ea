"""Intervals of means over a handful of seeds."""

import numpy as np
import pytest

from fsae.analysis.intervals import interval_of, mean_interval


def test_by_hand():
    """The mean of 1, 2, 3 is 2, its standard error 1 / sqrt(3), and the 97.5 % quantile of t at two degrees 4.3027."""
    assert interval_of(np.array([1.0, 2.0, 3.0])) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_two_values_have_no_interval():
    assert interval_of(np.array([1.0, 2.0])) is None


def test_equal_values_have_an_interval_of_no_width():
    assert interval_of(np.array([0.5, 0.5, 0.5])) == (0.5, 0.5)


def test_each_column_has_its_own_interval():
    values = np.random.default_rng(0).normal(size=(5, 3))
    together = mean_interval(values)
    assert together.shape == (2, 3)
    for column in range(3):
        assert tuple(together[:, column]) == interval_of(values[:, column])


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("draw", ["normal", "heavy", "pairs"])
def test_a_null_effect_is_excluded_one_time_in_twenty(n: int, draw: str):
    """Differences of pairs are symmetric, even if the values themselves are strongly skewed."""
    generator = np.random.default_rng(n)
    sweeps = {
        "normal": generator.normal(size=(n, 4000)),
        "heavy": generator.standard_t(3, size=(n, 4000)),
        "pairs": generator.exponential(size=(n, 4000)) - generator.exponential(size=(n, 4000)),
    }[draw]
    low, high = mean_interval(sweeps)
    assert 0.025 < float(((low > 0) | (high < 0)).mean()) < 0.06


def test_a_known_difference_is_found():
    """The effect is two standard deviations, with six seeds."""
    low, high = mean_interval(np.random.default_rng(0).normal(-2.0, 1.0, size=(6, 500)))
    assert float((high < 0).mean()) > 0.95
    assert 0.92 < float(((low < -2) & (high > -2)).mean()) < 0.98

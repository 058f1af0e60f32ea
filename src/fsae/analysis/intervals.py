"""Intervals of means over a handful of seeds."""

import numpy as np
from jaxtyping import Float

# Two seeds would have one of 13 standard errors to each side.
MIN_SEEDS = 3


def interval_of(values: Float[np.ndarray, " seeds"]) -> tuple[float, float] | None:
    """Return the 95 % interval of the values' mean; None for fewer than three values."""
    if len(values) < MIN_SEEDS:
        return None
    low, high = map(float, mean_interval(values))
    return low, high


def mean_interval(values: Float[np.ndarray, "seeds ..."]) -> Float[np.ndarray, "2 ..."]:
    """Return 95 % intervals of the mean of each column, by Student's t.

    It assumes that the values are about normal, which three to ten of them cannot show. Differences of pairs are nearly
    symmetric whatever the values themselves are, and for these it excludes the true mean in 3 to 5 % of all cases. The
    bootstrap assumes less and has next to nothing to draw from: its percentiles miss the mean of five values in 20 %,
    and the percentiles of its t statistic reach many times as far if some values are nearly equal.

    Args:
        values: at least three rows.
    """
    # Imported when it is needed: it takes long.
    from scipy.special import stdtrit

    n = values.shape[0]
    assert n >= MIN_SEEDS
    mean = values.mean(0)
    reach = stdtrit(n - 1, 0.975) * values.std(0, ddof=1) / np.sqrt(n)
    return np.array([mean - reach, mean + reach])

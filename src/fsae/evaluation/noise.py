"""The noise of a number: its standard deviation over repetitions of the evaluation with other seeds."""

from collections.abc import Sequence

import numpy as np


def mean_and_noise(name: str, repeated: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return the mean of a number over repetitions, and as `<name>_noise` its standard deviation.

    One repetition has no noise: 0 would mean that the number is exact.
    """
    noise = {f"{name}_noise": float(np.std(repeated, ddof=1))} if len(repeated) > 1 else {}
    return {name: float(np.mean(repeated))} | noise

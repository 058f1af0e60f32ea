"""The table of recipes at the same l0."""

import numpy as np
import pandas as pd
import pytest

from experiments.recipes import curves_by_seed, differences, reaches, table

SEEDS = (1, 2, 3)


def sweep(l0: list[float], above: float) -> pd.DataFrame:
    """Return runs whose fvu is log l0, and the seed's share of `above` more."""
    rows = [
        {"seed": seed, "eval/l0": each + seed / 10, "eval/fvu": np.log(each + seed / 10) + above * (seed + 1) / 3}
        for seed in SEEDS
        for each in l0
    ]
    return pd.DataFrame(rows)


def test_a_run_is_compared_with_the_baseline_of_its_seed_at_its_own_l0():
    baseline, recipe = sweep([20.0, 30.0, 60.0], 0.0), sweep([40.0], 0.3)
    assert reaches(baseline, recipe)
    found = differences(curves_by_seed(recipe, "fvu"), curves_by_seed(baseline, "fvu"))
    assert found == pytest.approx([0.2, 0.3, 0.4])
    head, _, first, second = table({"weak": recipe, "plain": baseline}, "plain", ["fvu", "probing"]).splitlines()
    assert head == "| recipe | l0 | fvu | probing |"
    assert first == "| plain | 20.1 to 60.3, here at 40.2 | 3.69 | - |"
    # 0.3 and 4.303 standard errors of 0.1 / sqrt(3)
    assert second == "| weak | 40.1 to 40.3 | 3.99 (+0.05 to +0.55) | - |"


@pytest.mark.parametrize("l0", [15.0, 60.2])
def test_no_difference_is_extrapolated(l0: float):
    baseline, recipe = sweep([20.0, 60.0], 0.0), sweep([l0], 0.3)
    assert not reaches(baseline, recipe)
    assert differences(curves_by_seed(recipe, "fvu"), curves_by_seed(baseline, "fvu")) is None
    first, second = table({"far": recipe, "plain": baseline}, "plain", ["fvu"]).splitlines()[2:]
    assert first == "| plain | 20.1 to 60.3 | 3.55 |"
    assert "(" not in second


def test_a_seed_without_a_baseline_has_no_difference():
    baseline = sweep([20.0, 60.0], 0.0)
    recipe = sweep([40.0], 0.3)
    assert not reaches(baseline.loc[baseline["seed"] > 1], recipe)
    assert differences(curves_by_seed(recipe, "fvu"), curves_by_seed(baseline.loc[baseline["seed"] > 1], "fvu")) is None

"""Paired differences of arms and their baseline, seed by seed."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from experiments.arms import arms_of
from experiments.paired import Compared, compare, plot, table


def runs(**changes) -> pd.DataFrame:
    """Five seeds of two weights at two sizes; the weight lowers the error by about 1, the size halves it."""
    rows = [
        {
            "run": f"{weight} {size} {seed}",
            "folder": "",
            "state": "finished",
            "failure": None,
            "sweep": None,
            "commit": None,
            "arch": "topk",
            "population.mutual.weight": weight,
            "population.size": size,
            "seed": seed,
            "eval/l0": 8.0,
            "eval/fvu": 10.0 * seed - (weight > 0) - 0.5 * (size > 2) + 0.01 * seed * (weight > 0),
        }
        | changes
        for weight in (0.0, 24.0)
        for size in (2, 5)
        for seed in range(1, 6)
    ]
    return pd.DataFrame(rows)


def printed(runs: pd.DataFrame, against: dict[str, str], apart: list[str], metrics: list[str]) -> str:
    return table(compared(runs, against, apart, metrics), metrics)


def compared(runs: pd.DataFrame, against: dict[str, str], apart: list[str], metrics: list[str]) -> list[Compared]:
    return compare(arms_of(runs, [*against, *apart], metrics), against, apart)


def lines(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {name: rest for name, *rest in cells}


def test_an_arm_is_paired_with_the_arm_that_differs_only_in_the_named_setting():
    found = lines(printed(runs(), {"population.mutual.weight": "0"}, [], ["fvu"]))
    assert found["arm"] == ["seeds", "fvu"]
    assert found["population.mutual.weight=0, population.size=5"] == ["5", "29.5"]
    seeds, cell = found["population.mutual.weight=24, population.size=5"]
    assert (seeds, cell.split(",")[0]) == ("5", "28.53 (-0.97")
    low, high = map(float, cell.rstrip(")").split(", ")[1].split(" to "))
    assert low < -0.97 < high < 0


def test_settings_may_be_ignored():
    against = {"population.mutual.weight": "0", "population.size": "2"}
    found = lines(printed(runs(), against, [], ["fvu"]))
    assert found["population.mutual.weight=24, population.size=5"][1].startswith("28.53 (-1.5,")
    assert found["population.mutual.weight=0, population.size=2"][1] == "30"


def test_ignored_settings_matter_only_if_no_arm_has_the_same():
    every = runs()
    against = {"population.mutual.weight": "0.0"}
    found = lines(printed(every, against, ["population.size"], ["fvu"]))
    assert found["population.mutual.weight=24, population.size=5"][1].startswith("28.53 (-0.97,")
    assert found["population.mutual.weight=0, population.size=5"][1] == "29.5"
    lone = pd.DataFrame(every.loc[(every["population.size"] == 2) | (every["population.mutual.weight"] > 0)])
    found = lines(printed(lone, against, ["population.size"], ["fvu"]))
    assert found["population.mutual.weight=24, population.size=5"][1].startswith("28.53 (-1.5,")
    three = pd.concat([every, every.loc[every["population.mutual.weight"] > 0].assign(**{"population.size": 9})])
    with pytest.raises(SystemExit, match="2 arms could be the baseline"):
        printed(pd.DataFrame(three), against, ["population.size"], ["fvu"])


def test_a_whole_group_may_be_ignored():
    every = runs()
    grown = pd.DataFrame(
        every.assign(**{"trainer.samples": every["population.mutual.weight"] + 100.0, "trainer.lr": 0.1})
    )
    against = {"population.mutual.weight": "0"}
    weighed = next(each for each in compared(grown, against, [], ["fvu"]) if "=24" in each.name)
    assert (weighed.baseline, weighed.is_baseline) == (None, False)
    found = compare(arms_of(grown, list(against), ["fvu"]), against, ["trainer."])
    assert [each.name for each in found if each.baseline is None] == [each.name for each in found if each.is_baseline]
    assert not any("trainer" in each.name for each in found)
    assert lines(table(found, ["fvu"]))["population.mutual.weight=24, population.size=2"][1].startswith("29.03 (-0.97,")


def test_few_seeds_have_no_interval_and_absent_values_no_difference():
    every = runs()
    some = pd.DataFrame(every.loc[every["seed"] < 3])
    some.loc[some["population.mutual.weight"] > 0, "eval/best_fvu"] = 1.0
    found = lines(printed(some, {"population.mutual.weight": "0"}, [], ["fvu", "best_fvu"]))
    assert found["population.mutual.weight=24, population.size=2"] == ["2", "14.02 (-0.99, -6.6%)", "1 (-14, -93.3%)"]
    # For a single autoencoder this is its fvu.
    assert found["population.mutual.weight=0, population.size=2"] == ["2", "15", "15"]


def test_unknown_columns_and_values_are_reported():
    with pytest.raises(SystemExit, match=r"no run has population\.mutual\.wieght, eval/nothing"):
        printed(runs(), {"population.mutual.wieght": "0"}, [], ["nothing"])
    with pytest.raises(SystemExit, match=r"no run has population\.mutual\.weight=7"):
        printed(runs(), {"population.mutual.weight": "7"}, [], ["fvu"])


def test_runs_without_a_value_are_left_out():
    gaps = runs()
    gaps.loc[gaps["seed"] == 5, "eval/fvu"] = np.nan
    found = lines(printed(gaps, {"population.mutual.weight": "0"}, [], ["fvu"]))
    assert found["population.mutual.weight=24, population.size=2"][1].startswith("24.02 (-0.98,")


def test_the_picture_has_a_line_per_compared_arm(tmp_path: Path):
    wide, tall = tmp_path / "one.png", tmp_path / "two.png"
    plot(compared(runs(), {"population.mutual.weight": "0"}, [], ["fvu"]), ["fvu"], wide)
    more = pd.concat([runs(), runs().assign(**{"population.size": 9})])
    plot(compared(pd.DataFrame(more), {"population.mutual.weight": "0"}, [], ["fvu"]), ["fvu"], tall)
    heights = [matplotlib.image.imread(picture).shape[0] for picture in (wide, tall)]
    assert heights[0] < heights[1]

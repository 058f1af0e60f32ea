import math

import numpy as np
import pandas as pd
import pytest

from fsae.analysis.comparison import (
    COMPARED_FIRST,
    Comparison,
    Curve,
    compare,
    curves_of,
    in_step,
    log_grid,
    shared_range,
    treatments,
)
from fsae.analysis.design import design_of
from fsae.outputs.results import Better, Meaning, Shown
from tests.analysis.run_folders import settings_of
from tests.evaluation.meanings import MEANINGS as BY_NAME

MEANINGS = {f"eval/{name}": meaning for name, meaning in BY_NAME.items()}


def runs(*rows: dict) -> pd.DataFrame:
    """Return the table of finished runs with these settings and numbers."""
    identity = {"run": "r", "folder": "f", "state": "finished", "failure": None, "sweep": None, "commit": None}
    histogram = {"density/log10_edges": None, "density/latents": None}
    return pd.DataFrame([identity | row | histogram for row in rows])


def run(theta: float, weight: float, seed: int, l0: float, fvu: float, arch: str = "gated", **more) -> dict:
    return settings_of(arch, theta, weight, seed) | {"eval/l0": l0, "eval/fvu": fvu} | more


def pair(seed: int, difference: float, arch: str = "gated", **more) -> list[dict]:
    """Return a seed's runs at l0 8 to 64, or half of that with the penalty; fvu = 1 - log2(l0) / 10 + difference."""
    found = []
    for weight, l0 in ((1, 64), (2, 32), (4, 16), (8, 8)):
        found.append(run(0, weight, seed, l0, 1 - math.log2(l0) / 10, arch, **more))
        found.append(run(0.01, weight, seed, l0 / 2, 1 - math.log2(l0 / 2) / 10 + difference, arch, **more))
    return found


def only_fvu(table: pd.DataFrame) -> list[Comparison]:
    return [each for each in compare(design_of(table), MEANINGS) if each.metric == "eval/fvu"]


def test_a_curve_is_interpolated_over_the_logarithm_of_l0():
    curve = Curve(np.array([10.0, 1000.0]), np.array([1.0, 3.0]))
    # Half way from log 10 to log 1000 is log 100.
    assert curve.at(np.array([10.0, 100.0, 1000.0])) == pytest.approx([1.0, 2.0, 3.0])


@pytest.mark.parametrize(("values", "lowest"), [([3, 1, 2], 8), ([1, 2, 3], None), ([3, 2, 1], None)])
def test_a_curve_has_a_lowest_point_if_it_is_at_no_end(values: list[float], lowest: float | None):
    assert Curve(np.array([4.0, 8.0, 16.0]), np.array(values)).lowest == lowest


@pytest.mark.parametrize("l0", [9.9, 1001.0])
def test_a_curve_refuses_extrapolation(l0: float):
    with pytest.raises(AssertionError, match="no extrapolation"):
        Curve(np.array([10.0, 1000.0]), np.array([1.0, 3.0])).at(np.array([l0]))


def test_the_grid_reaches_both_ends_of_a_curve():
    curve = Curve(np.array([0.1, 7.3]), np.array([1.0, 3.0]))
    grid = log_grid(0.1, 7.3)
    assert (grid[0], grid[-1]) == pytest.approx((0.1, 7.3))
    assert curve.at(grid)[[0, -1]] == pytest.approx([1.0, 3.0])


def test_shared_range_is_covered_by_all_curves():
    a, b, c = (Curve(np.array(l0), np.zeros(2)) for l0 in ((4.0, 32.0), (8.0, 64.0), (33.0, 64.0)))
    assert shared_range([a, b]) == (8.0, 32.0)
    assert shared_range([a, c]) is None


def test_curves_average_runs_of_one_l0_and_omit_inactive_ones():
    table = runs(
        run(0, 1, 0, 8.0, 0.2), run(0, 2, 0, 8.0, 0.4), run(0, 4, 0, 4.0, 0.6), run(0, 8, 0, 0.0, 1.0),
        run(0, 9, 0, 2.0, math.nan),
    )  # fmt: skip
    ((seeds,),) = [list(found.values()) for found in curves_of(design_of(table).cells, "eval/fvu").values()]
    assert seeds.l0.tolist() == [4.0, 8.0]
    assert seeds.values.tolist() == pytest.approx([0.6, 0.3])


def test_differences_are_taken_at_the_same_l0():
    (found,) = only_fvu(runs(*[row for seed in range(4) for row in pair(seed, -0.05)]))
    # At one setting the penalty halves l0, which costs 0.1; at one l0 it gains 0.05.
    assert found.differences == pytest.approx({f"seed={s}, source.seed={s}": -0.05 for s in range(4)})
    # The runs without the penalty start at 8, those with it end at 32.
    assert found.l0 == pytest.approx((8.0, 32.0))
    # The mean over log2(l0) from 3 to 5 of 1 - log2(l0) / 10.
    assert found.baseline == pytest.approx(0.6)
    assert found.interval == pytest.approx((-0.05, -0.05))


def test_the_mean_difference_is_over_the_logarithm_of_l0():
    """A difference of 0 at l0 8 that falls to -0.2 at 32 in steps of log l0 is -0.1 on average."""
    rows = []
    for place, l0 in enumerate((8, 16, 32, 64)):
        rows += [run(0, l0, 0, l0, 0.5), run(0.01, l0, 0, l0, 0.5 - 0.1 * place)]
    (found,) = only_fvu(runs(*rows))
    assert found.difference == pytest.approx(-0.15)


def test_numbers_of_any_evaluation_with_a_better_direction_follow_the_first_ones():
    meanings = {
        "eval/probe_accuracy": Meaning("accuracy of a probe", better=Better.more),
        "eval/probe_size": Meaning("size of a probe"),
        "eval/probe_loss": Meaning("loss of a probe", better=Better.less, shown=Shown.files),
        **MEANINGS,
    }
    rows = [
        row
        | dict.fromkeys((*COMPARED_FIRST[1:], "eval/probe_size", "eval/probe_loss"), 1.0)
        | {"eval/probe_accuracy": 0.9 if row["loss.penalty.weight"] else 0.8}
        for seed in range(4)
        for row in pair(seed, -0.05)
    ]
    found = {each.metric: each for each in compare(design_of(runs(*rows)), meanings)}
    assert list(found) == [*COMPARED_FIRST, "eval/probe_accuracy"]
    accuracy = found["eval/probe_accuracy"]
    assert accuracy.differences == pytest.approx(dict.fromkeys(accuracy.differences, 0.1))
    assert (len(accuracy.differences), accuracy.worth) == (4, "better")


def test_seeds_without_a_partner_are_omitted():
    alone = [row for row in pair(9, 5.0) if row["loss.penalty.weight"]]
    (found,) = only_fvu(runs(*[row for seed in range(4) for row in pair(seed, -0.05)], *alone))
    assert len(found.differences) == 4


def test_runs_with_another_penalty_setting_share_the_baseline():
    """θ = 0 is the same treatment for every form of the penalty."""
    rows = [row for seed in range(4) for row in pair(seed, -0.05)]
    other = [row | {"loss.penalty.form": "pre"} for row in rows if row["loss.penalty.weight"]]
    found = only_fvu(runs(*rows, *other))
    assert [each.treatment for each in found] == ["θ = 0.01, form=pre", "θ = 0.01, form=reconstruction"]
    assert [each.difference for each in found] == pytest.approx([-0.05, -0.05])


def test_pairs_have_one_architecture_and_condition():
    rows = [row for seed in range(4) for arch in ("gated", "jumprelu") for row in pair(seed, -0.05, arch)]
    rows += [row | {"site.layer": 9, "eval/fvu": row["eval/fvu"] + 7} for row in rows]
    found = only_fvu(runs(*rows))
    assert [(each.arch, each.condition) for each in found] == [
        ("gated", "layer=5"), ("jumprelu", "layer=5"), ("gated", "layer=9"), ("jumprelu", "layer=9"),
        ("all", "mean of the 4 above"),
    ]  # fmt: skip
    assert [each.difference for each in found] == pytest.approx([-0.05] * 5)


def test_the_mean_over_architectures_counts_seeds_and_not_runs():
    rows = [row for seed in range(4) for row in pair(seed, -0.01 * seed, "gated")]
    rows += [row for seed in range(4) for row in pair(seed, -0.03 * seed, "jumprelu")]
    mean = only_fvu(runs(*rows))[-1]
    assert list(mean.differences.values()) == pytest.approx([0.0, -0.02, -0.04, -0.06])


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        (runs(*pair(0, -0.05), *pair(1, 0.05)), "too few seeds to say: 2 of at least 3, of different signs"),
        (runs(*pair(0, -0.05), *pair(1, -0.03)), "too few seeds to say: 2 of at least 3, lower in each"),
        (runs(*pair(0, 0.05)), "too few seeds to say: 1 of at least 3"),
        (runs(*pair(0, 0.05)[:6]), "not comparable: fewer than four sparsities (3)"),
        (runs(*pair(0, 0.05)[1::2]), "not comparable: no runs with θ = 0"),
        (runs(*pair(0, 0.05)[1::2], *pair(1, 0.05)[::2]), "not comparable: no seed with and without the penalty"),
        (
            runs(*(row | {"eval/l0": row["eval/l0"] * 100 ** (row["loss.penalty.weight"] > 0)} for row in pair(0, 0))),
            "not comparable: the ranges of l0 do not overlap",
        ),
        (runs(*[row for s in range(4) for row in pair(s, 0.0)]), "the same in all 4 pairs"),
        # The mean is 0.0025, its standard error 0.0025, and three values off it are 3.18 of these.
        (
            runs(*[row for s, by in enumerate((0.0, 0.0, 0.0, 0.01)) for row in pair(s, by)]),
            "no difference found at this precision: between 0.005 lower and 0.010 higher (4 seeds)",
        ),
        (
            runs(*[row for s, by in enumerate((-0.02, -0.02, -0.01)) for row in pair(s, by)]),
            "lower by 0.002 to 0.031, better (3 seeds)",
        ),
        (
            runs(*[row for s, by in enumerate((-0.03, 0.01, 0.02, -0.01)) for row in pair(s, by)]),
            "no difference found at this precision: between 0.",
        ),
    ],
)  # fmt: skip
def test_verdicts_claim_nothing_without_evidence(table: pd.DataFrame, verdict: str):
    (found,) = only_fvu(table)
    assert found.verdict.startswith(verdict)


@pytest.mark.parametrize(
    ("metric", "interval", "verdict", "worth"),
    [
        ("eval/fvu", (-0.0187, -0.0041), "lower by 0.004 to 0.019, better (5 seeds)", "better"),
        ("eval/fvu", (0.0041, 0.0187), "higher by 0.004 to 0.019, worse (5 seeds)", "worse"),
        ("eval/ce_recovered_zero", (0.0041, 0.0187), "higher by 0.004 to 0.019, better (5 seeds)", "better"),
        ("eval/code_correlation_excess", (-2.0, -1.0), "lower by 1.0 to 2.0 (5 seeds)", ""),
        (
            "eval/fvu", (-0.0041, 0.0187),
            "no difference found at this precision: between 0.004 lower and 0.019 higher (5 seeds)", "",
        ),
        ("eval/fvu", (0.0, 0.0), "the same in all 5 pairs", ""),
    ],
)  # fmt: skip
def test_verdicts_state_the_size_and_the_number_of_seeds(
    metric: str, interval: tuple[float, float], verdict: str, worth: str
):
    found = Comparison(
        condition="", arch="gated", treatment="θ = 1", metric=metric, interval=interval,
        better=MEANINGS[metric].better,
        differences={str(seed): sum(interval) / 2 for seed in range(5)},
    )  # fmt: skip
    assert (found.verdict, found.worth) == (verdict, worth)


def test_numbers_of_one_sentence_have_the_same_decimals():
    assert in_step(0.00002, 0.0231) == ["0.000", "0.023"]
    assert in_step(-1234.5, 10.0) == ["-1234", "10"]
    assert in_step(0.0, 0.0) == ["0", "0"]
    assert in_step(0.01834, 0.01841) == ["0.0183", "0.0184"]


def test_a_negative_zero_has_no_sign():
    assert in_step(-0.0, 1.0) == ["0.0", "1.0"]


def test_treatments_are_sorted_by_their_numbers():
    """Weights come first, in increasing order; then 9 before 10, unlike as text."""
    rows = [run(theta, 1, 0, 8.0, 0.2) | {"loss.penalty.samples": n} for theta in (0.01, 0.0, 1e-5) for n in (10, 9)]
    names = ["θ = 1e-5, samples=9", "θ = 1e-5, samples=10", "θ = 0.01, samples=9", "θ = 0.01, samples=10"]
    assert treatments(design_of(runs(*rows)).cells) == ["θ = 0", *names]

"""A table of recipes for dictionaries at the same l0.

    python -m experiments.recipes outputs/dictionaries/smollm2 --against batch_topk --metrics fvu ce_recovered_zero

A recipe is a sweep over seeds, and its folder's name is its name. The baseline is a sweep over seeds and sparsities.
Each run of a recipe is compared with the baseline of its own seed at the run's own l0, interpolated over log l0. The
command prints the recipe's mean, and in brackets the 95 % interval of its mean difference, by Student's t over seeds.
The baseline's own numbers are those at the median l0 of these runs. A recipe with an l0 outside the baseline's is
printed without a difference. Recipes without a finished run are left out.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from fsae.analysis.comparison import Curve, in_step
from fsae.analysis.design import comparable
from fsae.analysis.intervals import interval_of
from fsae.analysis.numbers import readable, shown
from fsae.analysis.runs import collect_folders


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the recipes' sweeps")
    parser.add_argument("--against", required=True, metavar="RECIPE")
    parser.add_argument("--metrics", nargs="+", default=["fvu"], metavar="METRIC")
    options = parser.parse_args(arguments)
    sweeps = {each.parent.name: each.parent for each in sorted(options.folder.glob("*/sweep.json"))}
    runs = {name: comparable(collect_folders([sweep])) for name, sweep in sweeps.items()}
    finished = {name: each for name, each in runs.items() if "eval/l0" in each}
    if options.against not in finished:
        raise SystemExit(
            f"{options.folder} has no finished run of {options.against}; it has: {', '.join(finished) or 'none'}"
        )
    print(table(finished, options.against, options.metrics))


def table(runs: Mapping[str, pd.DataFrame], against: str, metrics: Sequence[str]) -> str:
    """Return the table in Markdown, the baseline first."""
    baseline, recipes = runs[against], {name: own for name, own in runs.items() if name != against}
    compared = [own["eval/l0"].dropna().to_numpy(float) for own in recipes.values() if reaches(baseline, own)]
    middle = float(np.median(np.concatenate(compared))) if compared else None
    lines = [["recipe", "l0", *metrics], ["---"] * (len(metrics) + 2)]
    place = _range(baseline) if middle is None else f"{_range(baseline)}, here at {middle:.1f}"
    of_baseline = {metric: curves_by_seed(baseline, metric) for metric in metrics}
    lines.append([against, place, *(_baseline_cell(curves, middle) for curves in of_baseline.values())])
    for name, own in recipes.items():
        cells = [_cell(curves_by_seed(own, metric), curves) for metric, curves in of_baseline.items()]
        lines.append([name, _range(own), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def curves_by_seed(runs: pd.DataFrame, metric: str) -> dict[str, Curve]:
    """Return a metric, named without `eval/`, against l0 for each seed that has it."""
    column = f"eval/{metric}"
    if column not in runs:
        return {}
    known = runs.loc[runs[column].notna() & (runs["eval/l0"] > 0)].sort_values("eval/l0")
    return {
        shown(seed): Curve(own["eval/l0"].to_numpy(float), own[column].to_numpy(float))
        for seed, own in known.groupby("seed")
    }


def reaches(baseline: pd.DataFrame, recipe: pd.DataFrame) -> bool:
    """Return whether every l0 of the recipe is within that of the baseline's runs of the same seed."""
    return _covers_all(curves_by_seed(baseline, "l0"), curves_by_seed(recipe, "l0"))


def differences(recipe: Mapping[str, Curve], baseline: Mapping[str, Curve]) -> Float[np.ndarray, " seeds"] | None:
    """Return each seed's mean difference from the baseline at the l0 of the recipe's runs; None if the baseline lacks
    a seed, or does not reach one of these l0."""
    if not recipe or not _covers_all(baseline, recipe):
        return None
    return np.array([(curve.values - baseline[seed].at(curve.l0)).mean() for seed, curve in recipe.items()])


def _covers_all(baseline: Mapping[str, Curve], recipe: Mapping[str, Curve]) -> bool:
    return all(seed in baseline and _covers(baseline[seed], curve.l0) for seed, curve in recipe.items())


def _covers(curve: Curve, l0: Float[np.ndarray, " points"]) -> bool:
    return bool(curve.l0[0] <= l0.min() and l0.max() <= curve.l0[-1])


def _range(runs: pd.DataFrame) -> str:
    return f"{runs['eval/l0'].min():.1f} to {runs['eval/l0'].max():.1f}"


def _baseline_cell(curves: Mapping[str, Curve], l0: float | None) -> str:
    if l0 is None:
        return _mean(curves)
    place = np.array([l0])
    if not all(_covers(curve, place) for curve in curves.values()):
        return "-"
    return _mean({seed: Curve(place, curve.at(place)) for seed, curve in curves.items()})


def _mean(curves: Mapping[str, Curve]) -> str:
    return readable(float(np.mean([curve.values.mean() for curve in curves.values()])), 3) if curves else "-"


def _cell(curves: Mapping[str, Curve], baseline: Mapping[str, Curve]) -> str:
    found = differences(curves, baseline)
    interval = None if found is None else interval_of(found)
    if interval is None:
        return _mean(curves)
    low, high = (each if each.startswith("-") else f"+{each}" for each in in_step(*interval))
    return f"{_mean(curves)} ({low} to {high})"


if __name__ == "__main__":
    main()

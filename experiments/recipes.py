"""A table of recipes for dictionaries at the same l0.

    python -m experiments.recipes outputs/dictionaries/smollm2 --against batch_topk --metrics fvu ce_recovered_zero

A recipe is a sweep over seeds and sparsities, and its folder's name is its name. Each seed's numbers are interpolated
over log l0, as in the report, and averaged over the range of l0 that the recipe shares with the baseline. The command
prints the recipe's mean in that range, and in brackets the 95 % interval, by Student's t, of its mean difference from
the baseline's same seeds. A recipe whose l0 is elsewhere is printed with its own means and no difference. Recipes
without a finished run are left out.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fsae.analysis.comparison import Curve, in_step, log_grid, shared_range
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
    names = [against, *(name for name in runs if name != against)]
    lines = [["recipe", "l0", *metrics], ["---"] * (len(metrics) + 2)]
    for name in names:
        l0 = runs[name]["eval/l0"]
        cells = [_cell(runs[name], runs[against], metric, name == against) for metric in metrics]
        lines.append([name, f"{l0.min():.1f} to {l0.max():.1f}", *cells])
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


def differences(recipe: Mapping[str, Curve], baseline: Mapping[str, Curve]) -> tuple[float, np.ndarray] | None:
    """Return the recipe's mean over the shared range of l0, and each seed's difference from the baseline; None if no
    range is shared by all seeds of both."""
    seeds = [seed for seed in recipe if seed in baseline]
    shared = shared_range(curves[seed] for seed in seeds for curves in (recipe, baseline)) if seeds else None
    if shared is None:
        return None
    grid = log_grid(*shared)
    own, other = (np.array([curves[seed].at(grid).mean() for seed in seeds]) for curves in (recipe, baseline))
    return float(own.mean()), own - other


def _cell(runs: pd.DataFrame, baseline: pd.DataFrame, metric: str, is_baseline: bool) -> str:
    curves = curves_by_seed(runs, metric)
    if not curves:
        return "-"
    found = None if is_baseline else differences(curves, curves_by_seed(baseline, metric))
    if found is None:
        return readable(float(np.mean([curve.values.mean() for curve in curves.values()])), 3)
    mean, values = found
    interval = interval_of(values)
    if interval is None:
        return readable(mean, 3)
    low, high = in_step(*interval)
    return f"{readable(mean, 3)} ({low} to {high})"


if __name__ == "__main__":
    main()

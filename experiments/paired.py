"""Arms of a study side by side: what each comes to over its seeds, and how far it is from a baseline's, seed by seed.

    python -m experiments.paired SWEEP... --against population.mutual.weight=0 --metrics fvu best_fvu pw_mcc

An arm is a set of finished runs that differ in their seed only. The baseline is the arm with the named settings that
has all others in common with the arm it is set against, but those named by --apart. Intervals are 95 % bootstrap
intervals of the mean difference, where there are at least four seeds. Prints a table in Markdown.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fsae.analysis.comparison import MIN_PAIRS, bootstrap_interval
from fsae.analysis.design import REPLICATES, comparable, design_of, shown
from fsae.analysis.runs import collect_folders


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="SWEEP")
    parser.add_argument("--against", nargs="+", required=True, metavar="SETTING=VALUE")
    parser.add_argument("--apart", nargs="*", default=[], metavar="SETTING", help="may differ from the baseline's")
    parser.add_argument("--metrics", nargs="+", default=["fvu"], metavar="METRIC")
    options = parser.parse_args(arguments)
    runs = comparable(collect_folders(options.folders))
    print(table(runs, dict(pair.split("=", 1) for pair in options.against), options.apart, options.metrics))


def table(runs: pd.DataFrame, against: dict[str, str], apart: Sequence[str], metrics: Sequence[str]) -> str:
    """Arms as lines, metrics as columns.

    Args:
        runs: finished ones, as `collect_folders` gives them.
        against: settings of the baseline, as text.
        apart: settings in which an arm and its baseline may differ besides these.
        metrics: without `eval/`.

    Raises:
        SystemExit: no run has a setting or metric of this name.
    """
    missing = [name for name in (*against, *apart, *(f"eval/{metric}" for metric in metrics)) if name not in runs]
    if missing:
        raise SystemExit(f"no run has {', '.join(missing)}")
    design = design_of(runs)
    settings = [name for name in (*design.varied, *design.follows) if name not in REPLICATES]
    settings += [name for name in against if name not in settings]
    arms = dict(iter(runs.groupby([runs[name].map(shown) for name in settings], sort=False)))
    told = [name for name in settings if len({values[settings.index(name)] for values in arms}) > 1]
    lines = [["arm", "seeds", *metrics], ["---"] * (2 + len(metrics))]
    for values, arm in arms.items():
        here = dict(zip(settings, values, strict=True))
        baseline = next(
            (
                other
                for others, other in arms.items()
                if all(
                    value == (against[name] if name in against else here[name])
                    for name, value in zip(settings, others, strict=True)
                    if name in against or name not in apart
                )
            ),
            None,
        )
        name = ", ".join(f"{name}={here[name]}" for name in told)
        cells = [cell(arm, None if baseline is arm else baseline, f"eval/{metric}") for metric in metrics]
        lines.append([name, str(len(arm)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(arm: pd.DataFrame, baseline: pd.DataFrame | None, metric: str) -> str:
    """The mean, and the mean difference from the baseline with its interval where there is one."""
    own = arm.groupby(arm["seed"].map(shown))[metric].mean().dropna()
    if own.empty:
        return ""
    text = f"{own.mean():.4g}"
    if baseline is None:
        return text
    difference = (own - baseline.groupby(baseline["seed"].map(shown))[metric].mean()).dropna()
    if difference.empty:
        return text
    text += f" ({difference.mean():+.2g}"
    if len(difference) >= MIN_PAIRS:
        low, high = bootstrap_interval(difference.to_numpy())
        if np.isfinite([low, high]).all():
            text += f", {low:+.2g} to {high:+.2g}"
    return text + ")"


if __name__ == "__main__":
    main()

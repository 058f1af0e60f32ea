"""Arms of a study side by side: what each comes to over its seeds, and how far it is from a baseline's, seed by seed.

    python -m experiments.paired SWEEP... --against population.mutual.weight=0 --metrics fvu best_fvu pw_mcc

An arm is a set of finished runs that differ in their seed only. The baseline is the arm with the named settings that
has all others in common with the arm it is set against; those named by --apart may differ where there is no such arm.
Intervals are 95 % bootstrap intervals of the mean difference, where there are at least four seeds. Of an autoencoder by
itself, best_fvu is its fvu. Prints a table in Markdown.
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
        SystemExit: no run has a setting or metric of this name, or the baseline's settings; or several arms could be a
            baseline.
    """
    missing = [name for name in (*against, *apart, *(f"eval/{metric}" for metric in metrics)) if name not in runs]
    if missing:
        raise SystemExit(f"no run has {', '.join(missing)}")
    design = design_of(runs)
    settings = [name for name in (*design.varied, *design.follows) if name not in REPLICATES]
    settings += [name for name in against if name not in settings]
    texts = runs[settings].map(shown).astype(str).agg(tuple, axis=1)
    arms = {values: runs.loc[texts == values] for values in dict.fromkeys(texts)}
    told = [place for place in range(len(settings)) if len({values[place] for values in arms}) > 1]

    fixed = {settings.index(name): _text(value) for name, value in against.items()}

    def baseline_of(values: tuple[str, ...]) -> pd.DataFrame | None:
        if all(values[place] == text for place, text in fixed.items()):
            return None
        wanted = tuple(fixed.get(place, value) for place, value in enumerate(values))
        if wanted in arms:
            return arms[wanted]
        close = [
            others
            for others in arms
            if all(
                there == value or (settings[place] in apart and place not in fixed)
                for place, (there, value) in enumerate(zip(others, wanted, strict=True))
            )
        ]
        if len(close) > 1:
            raise SystemExit(f"{len(close)} arms could be the baseline of one; name more settings with --against")
        return arms[close[0]] if close else None

    if not any(all(values[place] == text for place, text in fixed.items()) for values in arms):
        raise SystemExit(f"no run has {', '.join(f'{name}={value}' for name, value in against.items())}")
    lines = [["arm", "seeds", *metrics], ["---"] * (2 + len(metrics))]
    for values, arm in arms.items():
        name = ", ".join(f"{settings[place]}={values[place]}" for place in told)
        baseline = baseline_of(values)
        lines.append([name, str(len(arm)), *(cell(arm, baseline, f"eval/{metric}") for metric in metrics)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(arm: pd.DataFrame, baseline: pd.DataFrame | None, metric: str) -> str:
    """The mean, and the mean difference from the baseline with its interval where there is one."""
    own = by_seed(arm, metric)
    if not own:
        return ""
    text = f"{np.mean(list(own.values())):.4g}"
    others = {} if baseline is None else by_seed(baseline, metric)
    differences = np.array([own[seed] - others[seed] for seed in own if seed in others])
    if not len(differences):
        return text
    text += f" ({differences.mean():+.2g}"
    if len(differences) >= MIN_PAIRS:
        low, high = bootstrap_interval(differences)
        if np.isfinite([low, high]).all():
            text += f", {low:+.2g} to {high:+.2g}"
    return text + ")"


def _text(value: str) -> str:
    """As `shown` writes it."""
    try:
        return shown(float(value))
    except ValueError:
        return value


def by_seed(arm: pd.DataFrame, metric: str) -> dict[str, float]:
    """An arm's values, the mean of those of one seed."""
    values: dict[str, list[float]] = {}
    column = arm[metric]
    if metric == "eval/best_fvu":
        column = column.fillna(arm["eval/fvu"])
    for seed, value in zip(arm["seed"].map(shown), column, strict=True):
        if np.isfinite(value):
            values.setdefault(seed, []).append(value)
    return {seed: float(np.mean(each)) for seed, each in values.items()}


if __name__ == "__main__":
    main()

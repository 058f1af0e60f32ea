"""Arms of a study side by side: what each comes to over its seeds, and how far it is from a baseline's, seed by seed.

    python -m experiments.paired SWEEP... --against population.mutual.weight=0 --metrics fvu best_fvu pw_mcc
    python -m experiments.paired SWEEP... --against trainer=adam --picture differences.png

An arm is a set of finished runs that differ in their seed only. The baseline is the arm with the named settings that
has all others in common with the arm it is set against; those named by --apart may differ where there is no such arm.
Intervals are 95 % bootstrap intervals of the mean difference, where there are at least four seeds. Of an autoencoder by
itself, best_fvu is its fvu. Prints a table in Markdown; a picture shows differences relative to the baseline's mean.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fsae.analysis.comparison import MIN_PAIRS, bootstrap_interval
from fsae.analysis.design import REPLICATES, comparable, design_of, shown
from fsae.analysis.figures import COLOURS, figure
from fsae.analysis.runs import collect_folders


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="SWEEP")
    parser.add_argument("--against", nargs="+", required=True, metavar="SETTING=VALUE")
    parser.add_argument("--apart", nargs="*", default=[], metavar="SETTING", help="may differ from the baseline's")
    parser.add_argument("--metrics", nargs="+", default=["fvu"], metavar="METRIC")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    runs = comparable(collect_folders(options.folders))
    arms = arms_of(runs, dict(pair.split("=", 1) for pair in options.against), options.apart, options.metrics)
    print(table(arms, options.metrics))
    if options.picture is not None:
        plot(arms, options.metrics, options.picture)


@dataclass(frozen=True, eq=False)
class Difference:
    """Of two arms in one metric, over the seeds that both have.

    Attributes:
        values: of each seed.
        baseline: the baseline's mean over them.
        interval: of the mean; None with too few seeds.
    """

    values: np.ndarray
    baseline: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Arm:
    """Runs that differ in their seed only.

    Attributes:
        name: the settings that tell it from other arms.
        runs: its own.
        baseline: those of the arm it is set against, if there is one.
    """

    name: str
    runs: pd.DataFrame
    baseline: pd.DataFrame | None

    def values(self, metric: str) -> list[float]:
        """Of each seed."""
        return list(by_seed(self.runs, metric).values())

    def difference(self, metric: str) -> Difference | None:
        """From the baseline; None where no seed has both."""
        own, others = by_seed(self.runs, metric), {} if self.baseline is None else by_seed(self.baseline, metric)
        seeds = [seed for seed in own if seed in others]
        if not seeds:
            return None
        values, interval = np.array([own[seed] - others[seed] for seed in seeds]), None
        if len(seeds) >= MIN_PAIRS:
            low, high = bootstrap_interval(values)
            interval = (float(low), float(high)) if np.isfinite([low, high]).all() else None
        return Difference(values, float(np.mean([others[seed] for seed in seeds])), interval)


def arms_of(runs: pd.DataFrame, against: Mapping[str, str], apart: Sequence[str], metrics: Sequence[str]) -> list[Arm]:
    """Every arm with its baseline.

    Args:
        runs: finished ones, as `collect_folders` gives them.
        against: settings of the baseline, as text.
        apart: settings in which an arm and its baseline may differ besides these.
        metrics: that are wanted, without `eval/`.

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
    return [
        Arm(", ".join(f"{settings[place]}={values[place]}" for place in told), arm, baseline_of(values))
        for values, arm in arms.items()
    ]


def table(arms: Sequence[Arm], metrics: Sequence[str]) -> str:
    """Arms as lines, metrics as columns: the mean, and the mean difference with its interval where there is one."""
    lines = [["arm", "seeds", *metrics], ["---"] * (2 + len(metrics))]
    lines += [[arm.name, str(len(arm.runs)), *(_cell(arm, metric) for metric in metrics)] for arm in arms]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(arms: Sequence[Arm], metrics: Sequence[str], picture: Path) -> None:
    """One panel a metric, one line an arm: differences in percent of the baseline's mean; seeds as dots, their mean as
    a tick, the interval as a bar."""
    compared = [arm for arm in arms if arm.baseline is not None]
    with figure(picture, 2.6 + 2.2 * len(metrics), 0.9 + 0.34 * len(compared)) as drawn:
        panels = drawn.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axis, metric in zip(panels, metrics, strict=True):
            axis.axvline(0, color="#555555", lw=1)
            for place, arm in enumerate(compared):
                found = arm.difference(metric)
                if found is None:
                    continue
                percent = 100 / abs(found.baseline)
                if found.interval is not None:
                    ends = [end * percent for end in found.interval]
                    axis.plot(ends, [place, place], color=COLOURS[0], lw=5, alpha=0.3, solid_capstyle="butt")
                axis.plot(
                    percent * found.values, [place] * len(found.values), "o", color=COLOURS[0], ms=3.5, alpha=0.6, mew=0
                )
                axis.plot([percent * found.values.mean()], [place], "|", color=COLOURS[0], ms=12, mew=2)
            axis.set_title(metric)
            axis.grid(axis="y", visible=False)
        panels[0].set_yticks(range(len(compared)), [arm.name.replace(", ", "\n") for arm in compared], fontsize=7.5)
        panels[0].set_ylim(len(compared) - 0.4, -0.6)
        drawn.supxlabel("difference from the baseline, % of its mean", fontsize=9)


def by_seed(arm: pd.DataFrame, metric: str) -> dict[str, float]:
    """An arm's values of a metric, without `eval/`; the mean of those of one seed."""
    values: dict[str, list[float]] = {}
    column = arm[f"eval/{metric}"]
    if metric == "best_fvu":
        column = column.fillna(arm["eval/fvu"])
    for seed, value in zip(arm["seed"].map(shown), column, strict=True):
        if np.isfinite(value):
            values.setdefault(seed, []).append(value)
    return {seed: float(np.mean(each)) for seed, each in values.items()}


def _cell(arm: Arm, metric: str) -> str:
    own, found = arm.values(metric), arm.difference(metric)
    if not own:
        return ""
    text = f"{np.mean(own):.4g}"
    if found is None:
        return text
    interval = f", {found.interval[0]:+.2g} to {found.interval[1]:+.2g}" if found.interval is not None else ""
    return f"{text} ({found.values.mean():+.2g}{interval})"


def _text(value: str) -> str:
    """As `shown` writes it."""
    try:
        return shown(float(value))
    except ValueError:
        return value


if __name__ == "__main__":
    main()

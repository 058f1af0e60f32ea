"""A table of a study's arms: the mean of each over its seeds, and its difference from a baseline, seed by seed.

    python -m experiments.paired SWEEP... --against population.mutual.weight=0 --metrics fvu best_fvu pw_mcc
    python -m experiments.paired SWEEP... --against trainer=adam --picture differences.png

An arm is a set of finished runs that differ in their seed only. The baseline is the arm with the named settings that
has all others in common with the compared arm. If there is no such arm, the settings named by --apart may differ.
Intervals are 95 % intervals of the mean difference by Student's t, from three seeds on. The best_fvu of a single
autoencoder is its fvu. The command prints a table in Markdown, with differences also in percent of the baseline's mean;
the plot shows those.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.arms import Arm, read_arms
from fsae.analysis.figures import COLOURS, figure
from fsae.analysis.intervals import interval_of
from fsae.analysis.numbers import shown


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="SWEEP")
    parser.add_argument("--against", nargs="+", required=True, metavar="SETTING=VALUE")
    parser.add_argument(
        "--apart",
        nargs="*",
        default=[],
        metavar="SETTING",
        help="may differ from the baseline's; GROUP. for all below it",
    )
    parser.add_argument("--metrics", nargs="+", default=["fvu"], metavar="METRIC")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    against = dict(pair.split("=", 1) for pair in options.against)
    named = [name for name in options.apart if not name.endswith(".")]
    arms = read_arms(options.folders, [*against, *named], options.metrics)
    compared = compare(arms, against, options.apart)
    print(table(compared, options.metrics))
    if alone := [each.name for each in compared if each.baseline is None and not each.is_baseline]:
        print("\nWithout a baseline (name what else may differ with --apart): " + "; ".join(alone))
    if options.picture is not None:
        plot(compared, options.metrics, options.picture)


@dataclass(frozen=True, eq=False)
class Difference:
    """Differences of two arms in one metric, over the seeds that both have.

    Attributes:
        values: of each seed.
        baseline: the baseline's mean over them.
        interval: of the mean; None with too few seeds.
    """

    values: np.ndarray
    baseline: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Compared:
    """An arm and its baseline.

    Attributes:
        name: the settings that distinguish it from other arms.
        arm: the arm itself.
        baseline: the baseline, if there is one.
        is_baseline: whether it has the baseline's settings itself.
    """

    name: str
    arm: Arm
    baseline: Arm | None
    is_baseline: bool

    def difference(self, metric: str) -> Difference | None:
        """Return the difference from the baseline; None if no seed has both."""
        own, others = self.arm.by_seed(metric), {} if self.baseline is None else self.baseline.by_seed(metric)
        seeds = [seed for seed in own if seed in others]
        if not seeds:
            return None
        values = np.array([own[seed] - others[seed] for seed in seeds])
        return Difference(values, float(np.mean([others[seed] for seed in seeds])), interval_of(values))


def compare(arms: Sequence[Arm], against: Mapping[str, str], apart: Sequence[str]) -> list[Compared]:
    """Return every arm with its baseline.

    Args:
        against: settings of the baseline, as text.
        apart: further settings in which an arm and its baseline may differ, and groups of them, as "trainer.".

    Raises:
        SystemExit: no arm has the baseline's settings, or several could be the baseline of one.
    """
    fixed = {name: _text(value) for name, value in against.items()}
    if not any(fixed.items() <= arm.settings.items() for arm in arms):
        raise SystemExit(f"no run has {', '.join(f'{name}={value}' for name, value in against.items())}")
    groups = tuple(name for name in apart if name.endswith("."))
    free = {name for name in arms[0].settings if name in apart or name.startswith(groups)} - set(fixed)
    naming = [
        name
        for name in arms[0].settings
        if len({arm.settings[name] for arm in arms}) > 1 and (name in fixed or not name.startswith(groups))
    ]

    def is_baseline(arm: Arm) -> bool:
        return fixed.items() <= arm.settings.items()

    def baseline_of(arm: Arm) -> Arm | None:
        if is_baseline(arm):
            return None
        wanted = arm.settings | fixed
        close = [
            other
            for other in arms
            if all(value == wanted[name] or name in free for name, value in other.settings.items())
        ]
        if exact := [other for other in close if other.settings == wanted]:
            return exact[0]
        if len(close) > 1:
            raise SystemExit(f"{len(close)} arms could be the baseline of one; name more settings with --against")
        return close[0] if close else None

    def name_of(arm: Arm) -> str:
        return ", ".join(f"{name}={arm.settings[name]}" for name in naming)

    return [Compared(name_of(arm), arm, baseline_of(arm), is_baseline(arm)) for arm in arms]


def table(compared: Sequence[Compared], metrics: Sequence[str]) -> str:
    """Return arms as lines and metrics as columns: the mean, and the mean difference with its interval."""
    lines = [["arm", "seeds", *metrics], ["---"] * (2 + len(metrics))]
    for each in compared:
        lines.append([each.name, str(len(each.arm.runs)), *(_cell(each, metric) for metric in metrics)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(compared: Sequence[Compared], metrics: Sequence[str], picture: Path) -> None:
    """Plot one panel per metric and one line per arm.

    Differences are in percent of the baseline's mean, with seeds as dots, their mean as a tick, the interval as a bar.
    """
    compared = [each for each in compared if each.baseline is not None]
    labels = [each.name.replace(", ", "\n") for each in compared]
    lines = sum(label.count("\n") + 2 for label in labels)
    with figure(picture, 2.6 + 2.2 * len(metrics), 0.9 + 0.15 * lines) as drawn:
        panels = drawn.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axis, metric in zip(panels, metrics, strict=True):
            axis.axvline(0, color="#555555", lw=1)
            for place, each in enumerate(compared):
                found = each.difference(metric)
                if found is None:
                    continue
                percent = 100 / abs(found.baseline)
                if found.interval is not None:
                    ends = [end * percent for end in found.interval]
                    axis.plot(ends, [place, place], color=COLOURS[0], lw=5, alpha=0.3, solid_capstyle="butt")
                places = [place] * len(found.values)
                axis.plot(percent * found.values, places, "o", color=COLOURS[0], ms=3.5, alpha=0.6, mew=0)
                axis.plot([percent * found.values.mean()], [place], "|", color=COLOURS[0], ms=12, mew=2)
            axis.set_title(metric)
            axis.grid(axis="y", visible=False)
        panels[0].set_yticks(range(len(compared)), labels, fontsize=7.5)
        panels[0].set_ylim(len(compared) - 0.4, -0.6)
        drawn.supxlabel("difference from the baseline, % of its mean", fontsize=9)


def _cell(compared: Compared, metric: str) -> str:
    own, found = list(compared.arm.by_seed(metric).values()), compared.difference(metric)
    if not own:
        return ""
    text = f"{np.mean(own):.4g}"
    if found is None:
        return text
    interval = f", {found.interval[0]:+.2g} to {found.interval[1]:+.2g}" if found.interval is not None else ""
    percent = f", {found.values.mean() / abs(found.baseline):+.1%}" if found.baseline else ""
    return f"{text} ({found.values.mean():+.2g}{interval}{percent})"


def _text(value: str) -> str:
    """Return the value as `shown` writes it."""
    try:
        return shown(float(value))
    except ValueError:
        return value


if __name__ == "__main__":
    main()

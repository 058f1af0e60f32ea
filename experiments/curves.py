"""A metric as a function of a setting, or of the time of training: a line for each choice of some other settings.

    python -m experiments.curves SWEEP... --x source.share --lines trainer arch.encoder_init --picture share.png
    python -m experiments.curves SWEEP... --x seconds --lines trainer
    python -m experiments.curves SWEEP... --x eval/l0 --lines trainer --metric fvu

A point is the mean over the seeds of an arm, with its 95 % interval by Student's t from three seeds on. The command
prints a table in Markdown. Seconds are those of the training alone, from the times at which metrics were logged; they
can be compared if each run had the machine to itself (launcher=local).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.arms import Arm, read_arms
from fsae.analysis.figures import COLOURS, LINE_STYLES, MARKERS, figure, log_x
from fsae.analysis.intervals import interval_of

SECONDS = "seconds"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="SWEEP")
    parser.add_argument("--x", required=True, metavar="SETTING", help=f"or {SECONDS}, or eval/METRIC")
    parser.add_argument("--lines", nargs="*", default=[], metavar="SETTING")
    parser.add_argument("--metric", default="fvu")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    is_setting = options.x != SECONDS and not options.x.startswith("eval/")
    metrics = [options.metric] + ([options.x.removeprefix("eval/")] if options.x.startswith("eval/") else [])
    arms = read_arms(options.folders, [*options.lines, *([options.x] if is_setting else [])], metrics)
    curves = curves_of(arms, options.x, options.lines, options.metric)
    print(table(curves, options.x, options.metric))
    if options.picture is not None:
        plot(curves, options.x, options.metric, options.picture)


class Point(NamedTuple):
    """Mean and interval over an arm's seeds, and its x, which is text if it is no number."""

    x: float | str
    mean: float
    interval: tuple[float, float] | None
    seeds: int


def curves_of(arms: Sequence[Arm], x: str, lines: Sequence[str], metric: str) -> dict[str, list[Point]]:
    """Return points by the name of their line, in order of x."""
    curves: dict[str, list[Point]] = {}
    for arm in arms:
        values = np.array(list(arm.by_seed(metric).values()))
        if len(values):
            point = Point(place_of(arm, x), float(values.mean()), interval_of(values), len(values))
            curves.setdefault(", ".join(f"{name}={arm.settings[name]}" for name in lines), []).append(point)
    return {
        name: sorted(points, key=lambda point: (isinstance(point.x, str), point.x)) for name, points in curves.items()
    }


def place_of(arm: Arm, x: str) -> float | str:
    """Return the x of an arm: its setting, or the mean of a measurement over its runs."""
    if x == SECONDS:
        return float(np.mean([seconds_of(Path(folder)) for folder in arm.runs["folder"]]))
    if x.startswith("eval/"):
        return float(np.mean(list(arm.by_seed(x.removeprefix("eval/")).values())))
    try:
        return float(arm.settings[x])
    except ValueError:
        return arm.settings[x]


def seconds_of(folder: Path) -> float:
    """Return the seconds of a run's training, from its log of metrics, which starts one interval after the training.

    Raises:
        SystemExit: metrics were logged only once.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if any(name.startswith("train/") for name in line["metrics"])]
    if len(lines) < 2:
        raise SystemExit(f"{folder}: logged once only, so its time is not known; lower trainer.log_every")
    first, last = lines[0], lines[-1]
    return (last["time_ms"] - first["time_ms"]) / 1000 * last["step"] / (last["step"] - first["step"])


def table(curves: dict[str, list[Point]], x: str, metric: str) -> str:
    """Return a table with a line for each point."""
    rows = [["arm", x, metric, "95 % interval", "seeds"], ["---"] * 5]
    for name, points in curves.items():
        for point in points:
            where = point.x if isinstance(point.x, str) else f"{point.x:.4g}"
            interval = "" if point.interval is None else f"{point.interval[0]:.4g} to {point.interval[1]:.4g}"
            rows.append([name, where, f"{point.mean:.4g}", interval, str(point.seeds)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(curves: dict[str, list[Point]], x: str, metric: str, picture: Path) -> None:
    """Plot lines with bars; x is logarithmic if all of it is positive and spans a decade."""
    places = [point.x for points in curves.values() for point in points]
    with figure(picture, 5.2, 3.6) as drawn:
        axis = drawn.subplots()
        for number, (name, points) in enumerate(curves.items()):
            style = {
                "color": COLOURS[number % len(COLOURS)],
                "ls": LINE_STYLES[number % len(LINE_STYLES)],
                "marker": MARKERS[number % len(MARKERS)],
            }
            means = np.array([point.mean for point in points])
            ends = np.array([point.interval or (point.mean, point.mean) for point in points]).T
            axis.errorbar(
                [point.x for point in points],
                means,
                np.abs(ends - means),
                ms=4,
                capsize=2,
                elinewidth=1,
                label=name,
                **style,
            )
        numbers = [place for place in places if not isinstance(place, str)]
        if len(numbers) == len(places) and min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
            log_x(axis, min(numbers), max(numbers))
        axis.set_xlabel(x)
        axis.set_ylabel(metric)
        if any(curves):
            axis.legend()


if __name__ == "__main__":
    main()

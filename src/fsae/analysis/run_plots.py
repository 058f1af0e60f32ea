"""Pictures of one run, from the files in its folder: the course of training, and the density of its latents."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fsae.analysis.figures import COLOURS, figure, log_y
from fsae.outputs.metric_log import read_metrics

# The curves that a reader looks at first, with the scale of their axes.
CURVES = (
    ("train/fvu", "fraction of variance unexplained", "log"),
    ("train/l0", "active latents per vector (l0)", "linear"),
    ("train/fisher_ratio", "Fisher off-diagonal / diagonal", "log"),
    ("train/dead_share", "share of dead latents", "linear"),
)


def plot_training(metrics: Path, picture: Path) -> None:
    """Draw the logged curves of a run against the vectors it has seen.

    Args:
        metrics: the run's `metrics.jsonl`.
        picture: the PNG to write.
    """
    series: dict[str, tuple[list[int], list[float]]] = {}
    for record in read_metrics(metrics):
        for name, value in record.metrics.items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(record.step)
            values.append(value)
    with figure(picture, 10, 6) as drawn:
        for axis, (name, title, scale) in zip(drawn.subplots(2, 2).flat, CURVES, strict=True):
            steps, values = series.get(name, ([], []))
            axis.plot(np.array(steps) / 1e6, values, color=COLOURS[0])
            above = [value for value in values if 0 < value < math.inf]
            if scale == "log" and above:
                log_y(axis, min(above), max(above))
            axis.set_title(title)
            axis.set_xlabel("training vectors (millions)")


def plot_density(histogram: Mapping[str, Sequence[float]], dead_share: float, picture: Path) -> None:
    """Draw a histogram of the latents' density on held-out data, on a log axis; the title has the dead latents.

    Args:
        histogram: `density_histogram` of the run's results.
        dead_share: share of the latents that are never active.
        picture: the PNG to write.
    """
    with figure(picture, 7, 4) as drawn:
        axis = drawn.subplots()
        axis.stairs(histogram["latents"], histogram["log10_edges"], fill=True, color=COLOURS[0])
        used = [edge for edge, count in zip(histogram["log10_edges"], histogram["latents"], strict=False) if count]
        axis.set_xlim(min(used, default=-6.0) - 0.2, 0.0)
        axis.set_xlabel("log10 of the share of held-out vectors on which a latent is active")
        axis.set_ylabel("latents")
        axis.set_title(f"{sum(histogram['latents']):,.0f} latents are active; {100 * dead_share:.1f} % never are")


def plot_relative_norms(histograms: Mapping[str, Sequence[int]], picture: Path) -> None:
    """Draw the histogram of latents' relative norms at each part; of two parts, at the second alone.

    Args:
        histograms: latents in bins between 0 and 1, by part.
        picture: the PNG to write.
    """
    # The first part's relative norms are 1 minus the second's.
    shown = dict(list(histograms.items())[1:]) if len(histograms) == 2 else histograms
    with figure(picture, 7, 4) as drawn:
        axis = drawn.subplots()
        for number, (name, latents) in enumerate(shown.items()):
            edges = np.linspace(0, 1, len(latents) + 1)
            axis.stairs(latents, edges, fill=len(shown) == 1, color=COLOURS[number % len(COLOURS)], label=name)
        axis.set_xlim(0, 1)
        axis.set_xlabel("relative norm of the decoder row's part: 0 elsewhere alone, 0.5 shared, 1 here alone")
        axis.set_ylabel("live latents")
        axis.legend()


def plot_sharing(sharing: Mapping[str, Sequence[Sequence[float]]], picture: Path) -> None:
    """Draw how many of a population's members have each active latent; if the truth is known, also the cosine of each
    latent to the nearest true feature against the cosine to its closest partner in another member.

    Args:
        sharing: the content of a run's `sharing.json`.
        picture: the PNG to write.
    """
    members = len(sharing["found_by"])
    found_by = [count for each in sharing["found_by"] for count in each]
    numbers = range(1, members + 1)
    with figure(picture, 6, 4) as drawn:
        known = "nearest_cosine" in sharing
        axis, *others = drawn.subplots(1, 2 if known else 1, squeeze=False)[0]
        counts = [found_by.count(number) / members for number in numbers]
        axis.bar(numbers, counts, color=COLOURS[0])
        axis.set_ylabel("latents per member")
        axis.set_title(f"{100 * counts[-1] / max(1e-9, sum(counts)):.0f} % in all {members}")
        axis.set_xticks(numbers)
        axis.set_xlabel("members that have a latent")
        for truth in others:
            closest, cosines = (
                [value for each in sharing[name] for value in each] for name in ("closest", "nearest_cosine")
            )
            firing = [place for place, count in enumerate(found_by) if count > 0]
            x, y = ([values[place] for place in firing] for values in (closest, cosines))
            truth.plot(x, y, ".", color=COLOURS[0], ms=3, alpha=0.4, mew=0)
            truth.set_xlim(0, 1.02)
            truth.set_ylim(0, 1.02)
            truth.set_xlabel("cosine to its closest partner")
            truth.set_ylabel("cosine to the nearest true feature")

"""Pictures of a sweep: fronts, bits, θ-curves, differences at matched l0, and densities.

Each is small enough to be read on a phone; a reader with more room sees several side by side.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox, BboxBase

from fsae.analysis.comparison import (
    ALL_ARCHITECTURES,
    Comparison,
    Curve,
    Curves,
    log_grid,
    shared_range,
)
from fsae.analysis.figures import COLOURS, LINE_STYLES, MARKERS, figure, log_x, log_y
from fsae.analysis.intervals import MIN_SEEDS, mean_interval
from fsae.analysis.metrics import Accompaniment
from fsae.analysis.numbers import numbers_in_order, shown

# In inches. A phone's screen is as many pixels wide as the picture is points wide.
WIDTH = 4.8
VIRIDIS = mpl.colormaps["viridis"]

# Positions at which a point's label may begin or end, in points from it, nearest first.
_PLACES = [(across, up) for far in (4, 9, 18, 28) for across in (4, -4) for up in (far, -far)]

# Markers of the controls in a picture, and the grey of controls and noise.
_CONTROL_MARKERS = ("x", "+", "1", "2", "3", "4", "|", "_")
_GREY = "#777777"
# An axis's label for a metric.
AXIS_LABELS = {
    "eval/fvu": "fraction of variance unexplained (fvu)",
    "eval/ce_recovered_zero": "cross-entropy recovered",
    "eval/l0": "active latents per vector (l0)",
    "eval/dead_share": "share of dead latents",
    "eval/code_correlation_excess": "code correlation beyond chance",
    "eval/decoder_projection": "n-th largest projection onto decoder rows",
    "eval/decoder_max_cosine": "cosine to the nearest other latent",
}


@dataclass(frozen=True)
class Palette:
    """One colour per architecture, one line style and marker per treatment: the same in every picture of a report."""

    archs: Sequence[str]
    treatments: Sequence[str]

    def colour(self, arch: str) -> str:
        """Return the colour of an architecture; black for the mean over all."""
        return COLOURS[self.archs.index(arch) % (len(COLOURS) - 1)] if arch in self.archs else COLOURS[-1]

    def line(self, treatment: str):
        """Return the line style of a treatment."""
        return LINE_STYLES[self.treatments.index(treatment) % len(LINE_STYLES)]

    def marker(self, treatment: str) -> str:
        """Return the marker of a treatment."""
        return MARKERS[self.treatments.index(treatment) % len(MARKERS)]


def plot_front(
    curves: Curves,
    condition: str,
    label: str,
    palette: Palette,
    picture: Path,
    beside: Accompaniment | None = None,
) -> None:
    """Draw a metric against l0 in one condition: a point per run, a line for the seeds' mean, and a band; in grey, the
    evaluation's own noise as a bar at each point, and the points of each control.

    The band is the 95 % interval of the mean at each l0 with three seeds or more, else the range of the seeds; it and
    the line cover the range of l0 that every seed has.
    """
    beside = beside or Accompaniment()
    here = {(arch, name): seeds for (where, arch, name), seeds in curves.items() if where == condition}
    l0 = np.concatenate([curve.l0 for seeds in here.values() for curve in seeds.values()])
    number = len(l0)
    # A taller picture for a longer legend.
    with figure(picture, WIDTH, 4.4 + 0.18 * len(beside.controls)) as drawn:
        axis = drawn.subplots()
        for (arch, treatment), seeds in here.items():
            colour = palette.colour(arch)
            for curve in seeds.values():
                if beside.noise is not None:
                    for end in (-beside.noise, beside.noise):
                        axis.plot(curve.l0, curve.values + end, "_", color=_GREY, markersize=4)
                    axis.vlines(curve.l0, curve.values - beside.noise, curve.values + beside.noise, _GREY, lw=0.8)
                axis.plot(curve.l0, curve.values, palette.marker(treatment), color=colour, **_points(number))
            _draw_mean(axis, list(seeds.values()), colour, palette.line(treatment))
        markers: dict[str, str] = dict(zip(beside.controls, _CONTROL_MARKERS, strict=False))
        for name, marker in markers.items():
            axis.plot(*beside.controls[name], ls="", marker=marker, color=_GREY, markersize=6, mew=1)
        log_x(axis, l0.min(), l0.max())
        axis.margins(y=0.06)
        axis.set_xlabel(AXIS_LABELS["eval/l0"])
        axis.set_ylabel(fill(label, 34))
        if beside.noise is not None:
            markers["noise of the evaluation"] = "|"
        _add_legend(drawn, palette, {arch for arch, _ in here}, {treatment for _, treatment in here}, markers)


def plot_description_length(runs: pd.DataFrame, palette: Palette, picture: Path) -> None:
    """Draw fvu against the bits of a sample's codes: a point per run, labelled means over seeds, and a line through the
    means that no other mean of the same architecture and treatment beats in both.

    Args:
        runs: columns `arch` and `treatment`, which distinguish lines; `setting`, equal for the seeds of a mean, and its
            `label`; `eval/description_length`, above 0, and `eval/fvu`.
    """
    bits, fvu = names = ["eval/description_length", "eval/fvu"]
    with figure(picture, WIDTH, 4.4) as drawn:
        axis = drawn.subplots()
        labelled: list[tuple[str, tuple[float, float], str]] = []
        for arch, treatment in dict.fromkeys(zip(runs["arch"], runs["treatment"], strict=True)):
            line = runs.loc[(runs["arch"] == arch) & (runs["treatment"] == treatment)]
            colour = palette.colour(arch)
            axis.plot(line[bits], line[fvu], palette.marker(treatment), color=colour, ms=4, alpha=0.4, mew=0)
            means = pd.DataFrame(line.groupby(["setting", "label"], as_index=False)[names].mean()).sort_values(by=names)
            best = means.loc[means[fvu] < means[fvu].cummin().shift(fill_value=np.inf)]
            axis.plot(best[bits], best[fvu], color=colour, ls=palette.line(treatment))
            edge = {"edgecolors": "white", "linewidths": 0.6, "zorder": 3}
            axis.scatter(means[bits], means[fvu], 45, colour, marker=palette.marker(treatment), **edge)
            labelled += [
                (label, (x, y), colour) for label, x, y in zip(means["label"], means[bits], means[fvu], strict=True)
            ]
        log_x(axis, min(runs[bits]), max(runs[bits]))
        above = runs.loc[runs[fvu] > 0, fvu]
        if len(above):
            log_y(axis, min(above), max(above))
        axis.set_xlabel("bits of a sample's codes")
        axis.set_ylabel(AXIS_LABELS["eval/fvu"])
        _add_legend(drawn, palette, set(runs["arch"]), set(runs["treatment"]))
        _label_points(drawn, axis, labelled, runs[names].to_numpy(float))


def plot_theta(cells: pd.DataFrame, metric: str, palette: Palette, picture: Path) -> None:
    """Draw a metric against the penalty's weight: a panel per architecture, a line per sparsity, coloured by its l0.

    Points are means over seeds, bars their range.

    Args:
        cells: the cells of a `Design`, in one condition.
    """
    archs = [arch for arch in palette.archs if arch in set(cells["arch"])]
    names = [name for name in palette.treatments if name in set(cells["treatment"])]
    norm = LogNorm(*_l0_limits(cells))
    ticks = [name.removeprefix("θ = ").replace(", ", "\n") for name in names]
    # The width of a panel whose ticks do not overlap.
    needed = 0.09 * len(names) * max(2 + len(line) for tick in ticks for line in tick.split("\n"))
    rows, columns = _panels(len(archs), at_most=max(1, int((WIDTH - 1.2) / needed)))
    slanted = needed > WIDTH - 1.2
    with figure(picture, WIDTH, (1.9 if slanted else 1.2) + 2.2 * rows) as drawn:
        panels = drawn.subplots(rows, columns, sharey=True, squeeze=False)
        for axis in panels.flat[len(archs) :]:
            axis.set_visible(False)
        for axis, arch in zip(panels.flat, archs, strict=False):
            for _, line in cells.loc[cells["arch"] == arch].groupby("sparsity", sort=False):
                groups = [line.loc[line["treatment"] == name, metric].dropna().to_numpy(float) for name in names]
                places = [i for i, values in enumerate(groups) if len(values)]
                means = np.array([groups[i].mean() for i in places])
                ends = np.array([[groups[i].min(), groups[i].max()] for i in places]).reshape(-1, 2).T
                l0 = float(line["eval/l0"].mean())
                colour = VIRIDIS(norm(l0)) if l0 > 0 else COLOURS[-1]
                axis.errorbar(
                    places, means, np.abs(ends - means), fmt="-o", color=colour, markersize=4.5, capsize=2, elinewidth=1
                )  # fmt: skip
            axis.set_title(arch)
            # Evenly spaced, since a logarithmic axis has no place for zero.
            axis.set_xticks(range(len(names)), ticks)
            if slanted:
                axis.tick_params(axis="x", labelrotation=90, labelsize=8)
            axis.margins(x=0.15)
        drawn.supxlabel("weight of the penalty (θ)", fontsize=10)
        drawn.supylabel(AXIS_LABELS[metric], fontsize=10)
        bar = drawn.colorbar(ScalarMappable(norm, VIRIDIS), ax=panels, aspect=30, pad=0.02)
        bar.set_label("l0 (mean of each line)")
        bar.minorticks_off()
        low, high = norm.vmin or 1.0, norm.vmax or 1.0
        steps = _round_steps(low, high)
        bar.set_ticks(steps, labels=[shown(value) for value in steps])


def plot_differences(comparisons: Sequence[Comparison], palette: Palette, picture: Path) -> None:
    """Draw one metric's differences at matched l0: seeds as dots, their mean as a tick, the interval as a bar.

    Args:
        comparisons: comparisons of one metric, without those that have an obstacle.
    """
    labels = []
    for each in comparisons:
        mean = each.arch == ALL_ARCHITECTURES
        # Non-breaking spaces keep "θ = 1" on one line.
        treatment = each.treatment.replace("θ = ", "θ\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
        parts = [f"{'mean of the above' if mean else each.arch}, {treatment}", "" if mean else each.condition]
        labels.append("\n".join(fill(part, 26) for part in parts if part))
    lines = sum(label.count("\n") + 1 for label in labels)
    with figure(picture, WIDTH, 1.0 + 0.22 * len(comparisons) + 0.15 * lines) as drawn:
        axis = drawn.subplots()
        axis.axvline(0, color="#555555", lw=1)
        for place, each in enumerate(comparisons):
            colour = palette.colour(each.arch)
            if each.interval:
                axis.plot(each.interval, [place, place], color=colour, lw=5, alpha=0.3, solid_capstyle="butt")
            values = list(each.differences.values())
            axis.plot(values, [place] * len(values), "o", color=colour, **_points(len(values)))
            axis.plot([each.difference], [place], "|", color=colour, markersize=13, mew=2)
        axis.set_yticks(range(len(labels)), labels, fontsize=8.5)
        axis.set_ylim(len(labels) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel(f"difference in {AXIS_LABELS[comparisons[0].metric]}", fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(4))


def plot_density(histograms: Mapping[tuple[str, str], tuple[Sequence[float], Sequence[float]]], picture: Path) -> None:
    """Draw the distribution of the latents' density: a panel per architecture, a line per treatment.

    Args:
        histograms: (architecture, treatment) -> edges in log10, number of latents in each bin.
    """
    archs = list(dict.fromkeys(arch for arch, _ in histograms))
    names = sorted({name for _, name in histograms}, key=numbers_in_order)
    rows, columns = _panels(len(archs))
    with figure(picture, WIDTH, 1.2 + 2.1 * rows) as drawn:
        panels = drawn.subplots(rows, columns, sharex=True, squeeze=False)
        for axis in panels.flat[len(archs) :]:
            axis.set_visible(False)
        used: list[float] = []
        for axis, arch in zip(panels.flat, archs, strict=False):
            for name in names:
                if (arch, name) not in histograms:
                    continue
                edges, latents = histograms[arch, name]
                axis.stairs(
                    latents, edges, color=COLOURS[names.index(name) % len(COLOURS)],
                    ls=LINE_STYLES[names.index(name) % len(LINE_STYLES)], lw=1.3, label=_in_legend(name),
                )  # fmt: skip
                used += [edge for edge, count in zip(edges, latents, strict=False) if count]
            axis.set_title(arch)
            axis.set_ylim(bottom=0)
            axis.tick_params(labelbottom=True)
        panels.flat[0].set_xlim(min(used, default=-6.0) - 0.2, 0.0)
        drawn.supxlabel("log10 of the share of vectors on which a latent is active", fontsize=10)
        drawn.supylabel("latents", fontsize=10)
        handles = {label: h for axis in panels.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        labels = [_in_legend(name) for name in names]
        drawn.legend(
            [handles[label] for label in labels], labels, loc="outside upper center", ncols=_legend_columns(names)
        )


def band(
    curves: Sequence[Curve],
) -> tuple[Float[np.ndarray, " grid"], Float[np.ndarray, " grid"], Float[np.ndarray, "2 grid"]] | None:
    """Return l0, the seeds' mean and the band's two edges in the range that all curves share; None without one."""
    shared = shared_range(curves)
    if shared is None:
        return None
    l0 = log_grid(*shared)
    values = np.array([curve.at(l0) for curve in curves])
    enough = len(curves) >= MIN_SEEDS
    return l0, values.mean(0), mean_interval(values) if enough else np.array([values.min(0), values.max(0)])


def _add_legend(
    drawn: Figure,
    palette: Palette,
    archs: Set[str],
    treatments: Set[str],
    controls: Mapping[str, str] | None = None,
) -> None:
    """Add a legend: colours for the architectures, line styles for the treatments if there are several, and markers of
    the controls."""
    controls = controls or {}
    colours = [Line2D([], [], color=palette.colour(arch), lw=4, label=arch) for arch in palette.archs if arch in archs]
    grey: dict[str, Any] = {"color": "#555555", "markersize": 5}
    styles = [
        Line2D([], [], ls=palette.line(name), marker=palette.marker(name), label=_in_legend(name), **grey)
        for name in palette.treatments
        if name in treatments and len(treatments) > 1
    ]
    styles += [
        Line2D([], [], ls="", marker=marker, mew=1, label=_in_legend(name), **grey) for name, marker in controls.items()
    ]
    # matplotlib fills a legend column by column; this puts colours in its upper rows and styles below.
    columns = min(_legend_columns([*archs, *treatments, *controls]), max(len(colours), len(styles)))
    rows = [each[i : i + columns] for each in (colours, styles) for i in range(0, len(each), columns)]
    blank = Line2D([], [], ls="", label=" ")
    handles = [row[i] if i < len(row) else blank for i in range(columns) for row in rows]
    drawn.legend(handles=handles, loc="outside lower center", ncols=columns)


def _label_points(
    drawn: Figure,
    axis: Axes,
    labelled: Sequence[tuple[str, tuple[float, float], str]],
    points: Float[np.ndarray, "points 2"],
) -> None:
    """Draw labels near their points, within the axes, covering no other label and no point; omit a label that has no
    such position."""
    drawn.draw_without_rendering()
    # Fixes the layout: otherwise a label would shrink the axes, which would move the points.
    drawn.set_layout_engine("none")
    large, small = (radius * drawn.dpi / 72 for radius in (3.5, 2))
    drawn_points = [(axis.transData.transform(place), large) for _, place, _ in labelled]
    drawn_points += [(place, small) for place in axis.transData.transform(points)]
    taken: list[BboxBase] = [Bbox([place - radius, place + radius]) for place, radius in drawn_points]
    room = axis.get_window_extent()
    for label, place, colour in labelled:
        if not label:
            continue
        text = axis.annotate(label, place, (0, 0), textcoords="offset points", fontsize=8, color=colour)
        # A white outline keeps a label readable over a line.
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        for across, up in _PLACES:
            text.set(position=(across, up), ha="left" if across > 0 else "right", va="bottom" if up > 0 else "top")
            box = text.get_window_extent()
            inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
        else:
            text.remove()


def _draw_mean(axis: Axes, curves: Sequence[Curve], colour: str, style) -> None:
    found = band(curves)
    if found is None:
        # Seeds without a common range have no mean; a seed with one run has no line.
        for curve in curves:
            axis.plot(curve.l0, curve.values, color=colour, ls=style, lw=0.9)
        return
    l0, mean, (low, high) = found
    axis.plot(l0, mean, color=colour, ls=style)
    if len(curves) > 1:
        axis.fill_between(l0, low, high, color=colour, alpha=0.18, lw=0)


def _panels(number: int, at_most: int = 3) -> tuple[int, int]:
    """Return the numbers of rows and columns."""
    columns = min(2 if number == 4 else 3, number, at_most)
    return -(-number // columns), columns


def _points(number: int) -> dict[str, Any]:
    """Return the style of this many points: smaller if there are more, so that they stay separate."""
    return {"markersize": 6.5 if number <= 40 else 5 if number <= 200 else 3.5, "alpha": 0.65, "mew": 0}


def _in_legend(name: str) -> str:
    """Return a name, broken into several lines if it is long."""
    return fill(name, 48)


def _legend_columns(names: Collection[str]) -> int:
    longest = max(map(len, names))
    return 4 if longest <= 10 else 3 if longest <= 14 else 2 if longest <= 22 else 1


def _l0_limits(cells: pd.DataFrame) -> tuple[float, float]:
    l0 = cells["eval/l0"].to_numpy(float)
    l0 = l0[l0 > 0]
    if not len(l0):
        return 1.0, 10.0
    # A colour bar needs a range that is not empty.
    return float(l0.min()) / 1.05, float(l0.max()) * 1.05


def _round_steps(low: float, high: float) -> list[float]:
    if high / low >= 10:
        steps = [m * 10.0**e for e in range(-3, 7) for m in (1, 2, 5)]
    else:
        steps = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [value for value in steps if low <= value <= high]

"""Pictures of regions: a plane through them, the Voronoi diagram that it is a section of, and regions by size."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.ticker import FuncFormatter

from fsae.analysis.figures import COLOURS, figure, log_y
from fsae.analysis.numbers import shown

# Twenty hues; neighbouring regions may share one, so boundaries are drawn too.
_HUES = mpl.colormaps["tab20"]


def plot_regions(
    regions: Int[np.ndarray, "side side"],
    edges: Float[np.ndarray, " side"],
    points: Float[np.ndarray, "points 2"],
    sites: Float[np.ndarray, "sites 3"] | None,
    picture: Path,
) -> None:
    """Draw a plane, coloured by region, with the samples in it.

    Args:
        regions: number of the region at (edges[j], edges[i]).
        edges: coordinates along both axes.
        points: of samples.
        sites: x, y and weight of the power diagram's sites, if the diagram is in the plane.
        picture: the PNG to write.
    """
    with figure(picture, 6.2, 6) as drawn:
        axis = drawn.subplots()
        axis.grid(False)
        span = (edges[0], edges[-1])
        axis.imshow(_with_boundaries(regions), extent=(*span, *span), origin="lower", interpolation="nearest")
        axis.plot(*points.T, "o", color="black", markersize=2.5 if len(points) > 3 else 6, alpha=0.6, mew=0)
        if sites is not None:
            axis.plot(*sites[:, :2].T, "+", color="white", markersize=6, mew=1.2)
        axis.set_xlim(*span)
        axis.set_ylim(*span)
        axis.set_aspect("equal")
        where = "the plane" if sites is not None or len(points) > 3 else "the plane through three samples"
        axis.set_title(f"{len(np.unique(regions)):,} regions in {where}")


def plot_lift(
    regions: Int[np.ndarray, "side side"],
    edges: Float[np.ndarray, " side"],
    lift: Float[np.ndarray, "sites 3"],
    picture: Path,
) -> None:
    """Draw the lifted sites above the plane that is the section of their Voronoi diagram at height 0.

    Args:
        regions: number of the region at (edges[j], edges[i]).
        edges: coordinates along both axes.
        lift: x, y and height of each site.
        picture: the PNG to write.
    """
    with figure(picture, 6.5, 6) as drawn:
        axis = drawn.add_subplot(projection="3d")
        step = max(1, len(edges) // 80)
        across, along = np.meshgrid(edges[::step], edges[::step])
        colours = _hues(regions)[::step, ::step]
        axis.plot_surface(  # pyright: ignore[reportAttributeAccessIssue]
            across, along, np.zeros_like(across), facecolors=colours, rcount=100, ccount=100, shade=False
        )
        for x, y, height in lift:
            axis.plot([x, x], [y, y], [0, height], color="#999999", linewidth=0.6)
        axis.plot(*lift.T, "o", color=COLOURS[0], markersize=3.5)
        axis.set_zlabel("height of a site")  # pyright: ignore[reportAttributeAccessIssue]
        axis.set_title("the power diagram as a section of a Voronoi diagram")


def plot_region_sizes(least: Sequence[int], counts: Sequence[int], picture: Path) -> None:
    """Draw the number of regions by their number of samples, both on a log axis.

    Args:
        least: smallest number of samples of each bin, powers of two.
        counts: number of regions in each bin.
        picture: the PNG to write.
    """
    with figure(picture, 6, 4) as drawn:
        axis = drawn.subplots()
        axis.stairs(counts, [*least, 2 * least[-1]], fill=True, color=COLOURS[0])
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(float(value))))
        log_y(axis, 0.8, max(1, *counts))
        axis.set_xlabel("held-out samples in a region")
        axis.set_ylabel("regions")
        axis.set_title(f"{sum(counts):,} regions are occupied")


def _hues(regions: Int[np.ndarray, "side side"]) -> Float[np.ndarray, "side side 4"]:
    """Return a hue for each region; consecutive numbers get distant hues."""
    return np.array(_HUES(regions * 7 % 20))


def _with_boundaries(regions: Int[np.ndarray, "side side"]) -> Float[np.ndarray, "side side 4"]:
    """Return the hues, darker at the boundary of a region."""
    colours = _hues(regions)
    boundary = np.zeros(regions.shape, dtype=bool)
    boundary[1:] |= regions[1:] != regions[:-1]
    boundary[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    colours[boundary, :3] *= 0.35
    return colours

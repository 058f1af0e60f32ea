"""The style of pictures: size, type, and colours that colour-blind readers can distinguish."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fsae.analysis.numbers import shown

# matplotlib would log the building of its font cache in the run's log.
logging.getLogger("matplotlib").setLevel(logging.WARNING)

# Okabe and Ito's palette, darkest hues first, and two of Tol's; black is last.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933", "#7F7F7F", "#000000",
)  # fmt: skip
LINE_STYLES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")

STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.4,
    "figure.constrained_layout.use": True,
    # A name with dollar signs is not a formula.
    "text.parse_math": False,
    # Ticks show whole numbers, not offsets from a common number.
    "axes.formatter.useoffset": False,
}


@contextmanager
def figure(picture: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of this size in inches, and write it to `picture` at the end."""
    with mpl.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        # Drawn at the file's resolution: text has other widths at another one, so measurements would be wrong.
        drawn = Figure(figsize=(width, height), dpi=170)
        yield drawn
        picture.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(picture)


def log_x(axes: Axes, low: float, high: float) -> None:
    """Give axes a logarithmic x axis from a little below `low` > 0 to a little above `high`, with readable numbers."""
    axes.set_xscale("log")
    axes.set_xlim(*_with_margin(low, high))
    _log_ticks(axes.xaxis, low, high)


def log_y(axes: Axes, low: float, high: float) -> None:
    """Give axes the same logarithmic scale for y."""
    axes.set_yscale("log")
    axes.set_ylim(*_with_margin(low, high))
    _log_ticks(axes.yaxis, low, high)


def _with_margin(low: float, high: float) -> tuple[float, float]:
    margin = (high / low) ** 0.04 if high > low else 1.1
    return low / margin, high * margin


def _log_ticks(axis: Axis, low: float, high: float) -> None:
    low, high = _with_margin(low, high)
    # Within one decade, round steps are more useful than powers of ten.
    few = LogLocator(subs=(1, 2, 5)) if high / low < 1e3 else LogLocator()
    axis.set_major_locator(few if high / low >= 10 else MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: shown(float(value))))

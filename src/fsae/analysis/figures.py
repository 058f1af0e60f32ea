"""How pictures look: their size, their type, and colours that colour-blind readers can tell apart."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# matplotlib announces its font cache, in the run's log.
logging.getLogger("matplotlib").setLevel(logging.WARNING)

# Okabe and Ito's palette, darkest hues first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
LINE_STYLES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")

STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.4,
    "figure.constrained_layout.use": True,
}


@contextmanager
def figure(picture: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches to draw on, written to `picture` at the end."""
    with mpl.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        drawn = Figure(figsize=(width, height))
        yield drawn
        picture.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(picture, dpi=170)


def log_x(axis: Axes, low: float, high: float) -> None:
    """A logarithmic x axis from a little below `low` to a little above `high` > 0, with numbers a person can read."""
    margin = (high / low) ** 0.04 if high > low else 1.1
    axis.set_xscale("log")
    axis.set_xlim(low / margin, high * margin)
    # Within one decade, steps that are round in themselves say more than powers of ten.
    decades = high / low >= 10
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if decades else MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

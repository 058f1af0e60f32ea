"""The measurements as a page of Markdown and a plot."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from benchmarks.peers.comparison import CHECKED_STEPS, OURS, PEERS, Row
from benchmarks.peers.job import Job
from fsae.analysis.figures import COLOURS, figure, log_x

HEADINGS = (
    "", "peer", "peer, s", "fsae, s", "fsae bf16, s", "peer / fsae", "peer / fsae bf16",
    f"error after {CHECKED_STEPS} steps", "differs by", "l0", "memory, peer MB", "fsae MB", "fsae bf16 MB",
)  # fmt: skip
LIBRARIES = ("fsae", *PEERS)
MODES = {"fp32": "", "bf16": " autocast", "sparse": " sparse", "compiled": " compiled"}


def title(job: Job) -> str:
    """Return the architecture, and how it starts if that is not sparse."""
    dense = job.density is None and job.architecture not in ("topk", "batch_topk")
    return job.architecture + (", dense start" if dense else "")


def cells(row: Row, notes: list[str]) -> list[str]:
    """Return a row of the table and add its notes to the list."""
    theirs, ours, job = row.theirs, row.ours, row.theirs.job
    mark = ""
    if note := row.failure or row.known[0]:
        text = f"{job.library}, {job.architecture}: {note}"
        if text not in notes:
            notes.append(text)
        mark = f" [{notes.index(text) + 1}]"
    head = [title(job), f"{job.library}{MODES[job.mode]}{mark}"]
    if row.failure:
        return head + ["failed"] + ["-"] * (len(HEADINGS) - 3)
    fp32, bf16 = ours["fp32"], ours["bf16"]
    return [
        *head,
        f"{theirs.median:.3g}", f"{fp32.median:.3g}", f"{bf16.median:.3g}",
        f"{theirs.median / fp32.median:.1f}x", f"{theirs.median / bf16.median:.1f}x",
        f"{theirs.before['error']:.5g} → {theirs.after['error']:.5g}", f"{(row.exact or row).difference:.0e}",
        f"{row.counterpart.after['l0']:.0f}",
        f"{theirs.memory / 1e6:.0f}", f"{fp32.memory / 1e6:.0f}", f"{bf16.memory / 1e6:.0f}",
    ]  # fmt: skip


def slope(seconds: dict[int, float]) -> float:
    """Return the least-squares slope of log seconds over log d_sae."""
    x, y = [math.log(width) for width in seconds], [math.log(value) for value in seconds.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return across / sum((a - mean_x) ** 2 for a in x)


def markdown(machine: str, base: Job, repeats: int, rows: Sequence[Row], grown: dict[str, dict[int, float]]) -> str:
    """Return the page."""
    versions: dict[str, str] = {}
    for row in rows:
        for one in (*row.ours.values(), row.theirs):
            versions |= {name: text for name, text in one.versions.items() if name != "torch"}
            if torch := one.versions.get("torch"):
                versions[f"torch of {one.job.library}"] = torch
    notes: list[str] = []
    table = [cells(row, notes) for row in rows]
    lines = [
        "# A training step of fsae and of other libraries",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}; {machine}, {base.threads} threads; "
        + ", ".join(f"{name} {text}" for name, text in versions.items())
        + ".",
        f"d_in {base.d_in}, d_sae {base.d_sae}, batch {base.batch}, k {base.k}: medians of {repeats} interleaved steps "
        "on identical batches from identical weights. fsae follows the rules of each peer (decoder norm, clipping, "
        "Adam's settings): under SAELens' rules the decoder's rows have any norm and gradients are clipped. No latents "
        "are dead. The error is the mean squared error on other vectors; its difference is from fsae's in the same "
        "precision, relative to the change in these steps. Memory is the peak of training minus the memory in use "
        "before.",
        "",
        *_table(HEADINGS, table),
        "",
        *(f"[{number}] {note}." + "  " for number, note in enumerate(notes, 1)),
    ]
    for mode, seconds in grown.items():
        if len(seconds) > 1:
            points = ", ".join(f"{width}: {value:.3g} s" for width, value in seconds.items())
            lines += [
                "",
                f"fsae's topk step in {mode} by d_sae: {points}; slope of the logarithms {slope(seconds):.2f}.",
            ]
    return "\n".join(lines) + "\n"


def draw(picture: Path, machine: str, rows: Sequence[Row]) -> None:
    """Plot the seconds per step, with one group of bars per architecture."""
    groups: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows:
        # fsae under SAELens' rules, or whichever come first: they cost about the same.
        group = groups.setdefault(title(row.theirs.job), {})
        for mode in OURS:
            group.setdefault(("fsae", mode), row.ours[mode].median)
        if row.failure is None:
            group[row.theirs.job.library, row.theirs.job.mode] = row.theirs.median
    drawn_ways = {way for group in groups.values() for way in group}
    ways = [(library, mode) for library in LIBRARIES for mode in MODES if (library, mode) in drawn_ways]
    times = [seconds for group in groups.values() for seconds in group.values()]
    with figure(picture, 8, 1.2 + 0.2 * sum(len(group) + 1 for group in groups.values())) as drawn:
        axis = drawn.subplots()
        place, ticks = 0.0, []
        for group in groups.values():
            ticks.append(place + (len(group) - 1) / 2)
            for way, seconds in group.items():
                axis.barh(place, seconds, color=_colour(*way))
                axis.text(seconds, place, f" {seconds:.2g}", va="center", fontsize=7)
                place += 1
            place += 1
        axis.set_yticks(ticks, list(groups))
        axis.invert_yaxis()
        axis.margins(y=0.01)
        # Space for the shortest bar, and for the number of the longest.
        log_x(axis, min(times) / 1.5, max(times) * 1.15)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("seconds per step")
        axis.set_title(machine)
        legend = [Patch(color=_colour(*way), label=_name(*way)) for way in ways]
        drawn.legend(handles=legend, loc="outside upper center", ncols=3)


def _name(library: str, mode: str) -> str:
    return f"fsae {mode}" if library == "fsae" else library + MODES[mode]


def _colour(library: str, mode: str) -> tuple[float, float, float]:
    """Return the library's hue, paler for each further mode."""
    paleness = 0.75 * list(MODES).index(mode) / (len(MODES) - 1)
    red, green, blue = (part + (1 - part) * paleness for part in to_rgb(COLOURS[LIBRARIES.index(library)]))
    return red, green, blue


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    text = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (headings, *rows)]
    text.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(row) + " |" for row in text]

"""What was measured, as a page of Markdown and a picture."""

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.comparison import CHECKED_STEPS, Row
from benchmarks.peers.job import Job
from fsae.analysis.figures import COLOURS, figure

# Where a peer's training differs from ours under its rules, by design.
NOTES = {
    ("sae_lens", "gated"): "its auxiliary reconstruction also trains the decoder; ours, as in the paper, does not",
    ("sae_lens", "jumprelu"): "it learns thresholds, ours their logarithms",
    ("dictionary_learning", "jumprelu"): "it learns thresholds, ours their logarithms; its sparsity term sees only the "
    "half of the window above a threshold",
    ("sparsify", "topk"): "its loss is the fvu, so its gradients are smaller and Adam's epsilon weighs more",
}
HEADINGS = (
    "", "against", "theirs, s", "ours, s", "ours bf16, s", "theirs / ours", "theirs / ours bf16",
    f"error after {CHECKED_STEPS} steps", "differs by", "l0", "memory, theirs MB", "ours MB", "ours bf16 MB",
)  # fmt: skip
MODES = {"fp32": "", "bf16": " autocast", "sparse": " sparse", "compiled": " compiled"}


def title(job: Job) -> str:
    """The architecture, and how it starts where that is not sparse."""
    dense = job.density is None and job.architecture not in ("topk", "batch_topk")
    return job.architecture + (", dense start" if dense else "")


def cells(row: Row, notes: list[str]) -> list[str]:
    """A row of the table; its notes are added to those there are."""
    theirs, ours, job = row.theirs, row.ours, row.theirs.job
    mark = ""
    if note := theirs.failure or NOTES.get((job.library, job.architecture)):
        text = f"{job.library}, {job.architecture}: {note}"
        if text not in notes:
            notes.append(text)
        mark = f" [{notes.index(text) + 1}]"
    head = [title(job), f"{job.library}{MODES[job.mode]}{mark}"]
    if theirs.failure:
        return head + ["did not run"] + ["-"] * (len(HEADINGS) - 3)
    fp32, bf16 = ours["fp32"], ours["bf16"]
    return [
        *head,
        f"{theirs.median:.3g}", f"{fp32.median:.3g}", f"{bf16.median:.3g}",
        f"{theirs.median / fp32.median:.1f}x", f"{theirs.median / bf16.median:.1f}x",
        f"{theirs.before['error']:.5g} → {theirs.after['error']:.5g}", f"{row.difference:.0e}",
        f"{row.counterpart.after['l0']:.0f}",
        f"{theirs.memory / 1e6:.0f}", f"{fp32.memory / 1e6:.0f}", f"{bf16.memory / 1e6:.0f}",
    ]  # fmt: skip


def slope(seconds: dict[int, float]) -> float:
    """Least-squares slope of log seconds over log d_sae."""
    x, y = [math.log(width) for width in seconds], [math.log(value) for value in seconds.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return across / sum((a - mean_x) ** 2 for a in x)


def markdown(machine: str, base: Job, repeats: int, rows: Sequence[Row], grown: dict[str, dict[int, float]]) -> str:
    """The page."""
    versions: dict[str, str] = {}
    for row in rows:
        for one in (*row.ours.values(), row.theirs):
            versions |= {name: text for name, text in one.versions.items() if name != "torch"}
            if torch := one.versions.get("torch"):
                versions[f"torch of {one.job.library}"] = torch
    notes: list[str] = []
    table = [cells(row, notes) for row in rows]
    lines = [
        "# A training step, ours and the peers'",
        "",
        f"{machine}, {base.threads} threads; " + ", ".join(f"{name} {text}" for name, text in versions.items()) + ".",
        f"d_in {base.d_in}, d_sae {base.d_sae}, batch {base.batch}, k {base.k}: medians of {repeats} steps, taken in "
        "turns on identical batches from identical weights. Ours follows each peer's rules (decoder norm, clipping, "
        "Adam's settings). The error is the mean squared one on other vectors; it differs by so much between a peer "
        "and ours in the same precision. Memory is the peak of training beyond what was there before.",
        "",
        *_table(HEADINGS, table),
        "",
        *(f"[{number}] {note}." + "  " for number, note in enumerate(notes, 1)),
    ]
    for mode, seconds in grown.items():
        if len(seconds) > 1:
            points = ", ".join(f"{width}: {value:.3g} s" for width, value in seconds.items())
            lines += ["", f"Our topk step in {mode} by d_sae: {points}; slope of the logarithms {slope(seconds):.2f}."]
    return "\n".join(lines) + "\n"


def draw(picture: Path, machine: str, rows: Sequence[Row]) -> None:
    """Seconds of a step, a group of bars an architecture."""
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        # Ours under SAELens' rules, or whichever come first: they cost about the same.
        group = groups.setdefault(title(row.theirs.job), {})
        group.setdefault("ours bf16", row.ours["bf16"].median)
        group.setdefault("ours fp32", row.ours["fp32"].median)
        if row.theirs.failure is None:
            group[row.theirs.job.library + MODES[row.theirs.job.mode]] = row.theirs.median
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    colours = dict(zip(names, COLOURS, strict=False))
    with figure(picture, 8, 1.2 + 0.2 * sum(len(group) + 1 for group in groups.values())) as drawn:
        axis = drawn.subplots()
        place, ticks = 0.0, []
        for group in groups.values():
            ticks.append(place + (len(group) - 1) / 2)
            for name, seconds in group.items():
                axis.barh(place, seconds, color=colours[name], label=name)
                axis.text(seconds, place, f" {seconds:.2g}", va="center", fontsize=7)
                place += 1
            place += 1
        axis.set_yticks(ticks, list(groups))
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("seconds a step")
        axis.set_title(machine)
        handles, labels = axis.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axis.legend(unique.values(), unique.keys(), loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=4)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    text = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (headings, *rows)]
    text.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(row) + " |" for row in text]

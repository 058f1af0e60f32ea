"""The table of jobs: a row per job with its differing settings, its held-out numbers and its state."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from fsae.analysis.design import PARTLY_KNOWN, called, differing_settings
from fsae.analysis.metrics import in_tables, meanings_of
from fsae.analysis.numbers import readable, shown
from fsae.outputs.results import Better, Meaning, Shown


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """One job.

    Attributes:
        job: the values that distinguish it from the others, as in "gated, seed=0"; the run's name if no value does.
        run, folder, state: as in the table of runs.
        settings: the table's settings that the job has, by key.
        numbers: the table's finite numbers that the job has, by `eval/<metric>`.
        best: those of `numbers` that no other job improves on, among numbers that differ and have a better direction.
            Empty if the job's fvu is above 1, which is worse than predicting the mean.
    """

    job: str
    run: str
    folder: str
    state: str
    settings: dict[str, object]
    numbers: dict[str, float]
    best: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class JobTable:
    """All jobs, in their order.

    Attributes:
        settings: keys of the settings that differ, without those that follow from others.
        numbers: `eval/<metric>` of the numbers that some job has, the main ones first, and their meanings.
    """

    settings: list[str]
    numbers: dict[str, Meaning]
    rows: list[JobRow]

    def text(self) -> str:
        """Return aligned columns for a console: the differing settings, the main numbers and the state.

        A star marks the best numbers. The text does not end in a newline.
        """
        cells = self._cells(lambda number, best: f"{number}{'*' if best else ' '}")
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        numeric = self._numeric()
        lines = [
            "  ".join(
                f"{cell:>{width}}" if right else f"{cell:<{width}}"
                for cell, width, right in zip(row, widths, numeric, strict=True)
            ).rstrip()
            for row in cells
        ]
        return "\n".join([*lines, *([f"* {self.legend()}"] if self.legend() else [])])

    def markdown(self) -> str:
        """Return the same columns as a table in Markdown, the best numbers bold."""
        head, *rows = self._cells(lambda number, best: f"**{number}**" if best else number)
        rule = ["---:" if right else "---" for right in self._numeric()]
        lines = [" | ".join(cell.strip().replace("|", "\\|") for cell in row) for row in (head, rule, *rows)]
        return "\n".join(f"| {line} |" for line in lines)

    def legend(self) -> str:
        """Return the names of the numbers that are marked as lowest or highest; empty if no number is marked."""
        marked = [name for name in self.numbers if any(name in row.best for row in self.rows)]
        words = [
            f"{'highest' if self.numbers[name].better is Better.more else 'lowest'} {_short(name)}"
            for name in marked
            if name in self._main()
        ]
        return f"best of all jobs: {', '.join(words)}" if words else ""

    def _main(self) -> list[str]:
        return [name for name, meaning in self.numbers.items() if meaning.shown is Shown.first]

    def _numeric(self) -> list[bool]:
        return [*(False for _ in self.settings or ["run"]), *(True for _ in self._main()), False]

    def _cells(self, mark: Callable[[str, bool], str]) -> list[list[str]]:
        """Yield the texts line by line; `mark` makes the text of a number, given whether it is the best."""
        head = [*map(called, self.settings or ["run"]), *(mark(_short(name), False) for name in self._main()), "state"]
        rows = []
        for row in self.rows:
            own = [shown(row.settings[name]) if name in row.settings else "" for name in self.settings]
            numbers = [
                mark(readable(row.numbers[name]), name in row.best) if name in row.numbers else ""
                for name in self._main()
            ]
            # A job without any of these settings is shown by its name.
            rows.append([*(own if any(own) else [row.run, *own[1:]]), *numbers, row.state])
        return [head, *rows]


def job_table(runs: pd.DataFrame) -> JobTable:
    """Return the table of these jobs.

    Args:
        runs: as `fsae.analysis.runs` collects them.
    """
    settings = differing_settings(runs)
    records = runs.to_dict("records")
    meanings = meanings_of(runs)
    names = in_tables(meanings)
    measured = [_finite(record, names) if record["state"] == "finished" else {} for record in records]
    numbers = {name: meanings[name] for name in names if any(name in found for found in measured)}
    sound = [{} if (record.get("eval/fvu") or 0.0) > 1 else own for record, own in zip(records, measured, strict=True)]
    best = {
        name: _best(meaning.better, [found[name] for found in sound if name in found])
        for name, meaning in numbers.items()
    }
    rows = []
    for record, found, eligible in zip(records, measured, sound, strict=True):
        own = {name: record[name] for name in settings if shown(record[name]) != "null"}
        values = [f"{called(name)}={shown(value)}".removeprefix("arch=") for name, value in own.items()]
        rows.append(
            JobRow(
                job=_asked(str(record["run"])) if record["state"] in PARTLY_KNOWN or not values else ", ".join(values),
                run=str(record["run"]),
                folder=str(record["folder"] or ""),
                state=str(record["state"]),
                settings=own,
                numbers=found,
                best=frozenset(name for name, value in eligible.items() if value == best[name]),
            )
        )
    return JobTable(settings=settings, numbers=numbers, rows=rows)


def _asked(run: str) -> str:
    """Return a job's requested settings, "arch=gated, arch.k=8", in the form of names of jobs with known settings."""
    parts = [part.partition("=") for part in re.split(r", ?(?=[\w.]+=)", run)]
    return ", ".join(f"{called(key)}{mark}{value}".removeprefix("arch=") for key, mark, value in parts)


def _finite(record: Mapping, names: Sequence[str]) -> dict[str, float]:
    values = {name: record.get(name) for name in names}
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def _best(better: Better, values: Sequence[float]) -> float | None:
    if better is Better.neither or len(set(values)) < 2:
        return None
    return max(values) if better is Better.more else min(values)


def _short(name: str) -> str:
    return name.removeprefix("eval/")

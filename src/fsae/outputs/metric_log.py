"""`metrics.jsonl`: one JSON line per logging call, written to disk before any server receives it."""

import json
import math
import os
import posixpath
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# The metric names that MLflow accepts on every system. A refused name would block all values that follow it.
METRIC_NAME = re.compile(r"[\w.\- /]{1,250}")


class MetricSink(Protocol):
    """A receiver of a training loop's numbers."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values at `step`, which counts samples (tokens if the data is text).

        A name is logged at most once per step, and its steps increase. Never waits for a server.
        """
        ...

    def log_message(self, message: str) -> None:
        """Write a line to the run's own log."""
        ...

    def position(self) -> int:
        """Return the number of bytes that are recorded and safe on disk, for a checkpoint to resume from."""
        ...


class Unrecorded:
    """A sink for the numbers of a training that leaves no files."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_message(self, message: str) -> None: ...

    def position(self) -> int:
        return 0


@dataclass(frozen=True)
class MetricRecord:
    """One line: values logged at `step`, `time_ms` after 1970; `end` is the byte at which the next line starts."""

    time_ms: int
    step: int
    metrics: dict[str, float]
    end: int


class MetricLog:
    """A writer of `metrics.jsonl`; every line reaches the operating system at once, so a kill loses none.

    Args:
        path: the file, created if missing.
        position: bytes to keep, from the resumed checkpoint; values logged after it are dropped.
        dropped: a file that the dropped lines are appended to.

    Raises:
        ValueError: the file is shorter than `position`.
    """

    def __init__(self, path: Path, position: int = 0, dropped: Path | None = None) -> None:
        self.path = path
        self._known_names: set[str] = set()
        self._file = path.open("ab")
        self._truncate_to(position, dropped)

    def append(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one line.

        Raises:
            ValueError: a name that MLflow would refuse.
            OSError: no space is left.
        """
        for name in metrics.keys() - self._known_names:
            if not METRIC_NAME.fullmatch(name) or posixpath.normpath(name) != name or name.startswith(("..", "/")):
                raise ValueError(
                    f"metric name {name!r}: use letters, digits, and _ - . / or spaces, "
                    "at most 250 of them, as in train/l0"
                )
            self._known_names.add(name)
        record = {
            "time_ms": time.time_ns() // 1_000_000,
            "step": step,
            "metrics": {name: _to_json(value) for name, value in metrics.items()},
        }
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def position(self) -> int:
        """Return the bytes written, after making sure that they survive a crash of the machine."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def _truncate_to(self, position: int, dropped: Path | None) -> None:
        size = self._file.seek(0, os.SEEK_END)
        if size < position:
            raise ValueError(
                f"{self.path} has {size} bytes, and the checkpoint was saved when it had {position}: "
                "restore the file, or delete the checkpoints to start from the beginning"
            )
        if dropped is not None and size > position:
            _append_lines(self.path, position, dropped)
        self._file.truncate(position)
        self._file.seek(position)

    def close(self) -> None:
        """Make the lines safe on disk and close the file; closing it again does nothing."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


def read_metrics(path: Path, start: int = 0) -> Iterator[MetricRecord]:
    """Yield the records from byte `start` on, in the order of logging, without an incomplete last line.

    Raises:
        ValueError: a complete line is not a record.
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as file:
        file.seek(start)
        end = start
        for line in file:
            if not line.endswith(b"\n"):
                return
            begin, end = end, end + len(line)
            try:
                record = json.loads(line)
                # float() reads the names of the non-finite values as `_to_json` writes them.
                metrics = {name: float(value) for name, value in record["metrics"].items()}
                yield MetricRecord(time_ms=record["time_ms"], step=record["step"], metrics=metrics, end=end)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path}: the line at byte {begin} is not a record of metrics: {line[:80]!r}"
                ) from error


def _append_lines(path: Path, start: int, to: Path) -> None:
    """Append the complete lines from byte `start` on to another file, which may end in an incomplete line."""
    with path.open("rb") as source, to.open("a+b") as file:
        source.seek(start)
        lines = source.read()
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(lines[: lines.rfind(b"\n") + 1])
        file.flush()
        os.fsync(file.fileno())


def _to_json(value: float) -> float | str:
    # JSON has no such numbers, and most readers other than Python's refuse a bare NaN.
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"

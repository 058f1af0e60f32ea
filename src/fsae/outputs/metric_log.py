"""`metrics.jsonl`: one JSON line a logging call, on disk before any server hears of it."""

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

# What MLflow accepts as a metric's name on every system. A name it refuses would hold up all that follow it.
METRIC_NAME = re.compile(r"[\w.\- /]{1,250}")


class MetricSink(Protocol):
    """Where a training loop's numbers go."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values at `step`, which counts tokens (samples where the data is not text).

        A name is logged at most once a step, and its steps rise. Never waits for a server.
        """
        ...

    def log_message(self, message: str) -> None:
        """Put a line into the run's own log."""
        ...

    def position(self) -> int:
        """How many bytes are recorded and safe on disk: what a checkpoint keeps, to resume from."""
        ...


@dataclass(frozen=True)
class MetricRecord:
    """One line: the values logged at `step`, `time_ms` after 1970; `end` is the byte at which the next line starts."""

    time_ms: int
    step: int
    metrics: dict[str, float]
    end: int


class MetricLog:
    """Appends to a `metrics.jsonl`; every line reaches the operating system at once, so that a kill loses none.

    Args:
        path: the file, made when it is not there.
        position: bytes to keep, from the checkpoint that is resumed; what was logged after it is dropped.
        dropped: a file to which that is appended.

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
        """Bytes written, after making sure that they survive a crash of the machine."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def _truncate_to(self, position: int, dropped: Path | None) -> None:
        size = self._file.seek(0, os.SEEK_END)
        if size < position:
            raise ValueError(
                f"{self.path} has {size} bytes, and the checkpoint was saved when it had {position}: "
                "restore the file, or delete the checkpoints to start anew"
            )
        if dropped is not None and size > position:
            _append_lines(self.path, position, dropped)
        self._file.truncate(position)
        self._file.seek(position)

    def close(self) -> None:
        """Make the lines safe on disk and close the file; again is harmless."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


def read_metrics(path: Path, start: int = 0) -> Iterator[MetricRecord]:
    """The records from byte `start` on, in the order of logging; a last line that is still being written is left out.

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
    """Copy the complete lines from byte `start` on to the end of another file, which may end in a torn line."""
    with path.open("rb") as source, to.open("a+b") as file:
        source.seek(start)
        lines = source.read()
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(lines[: lines.rfind(b"\n") + 1])
        file.flush()
        os.fsync(file.fileno())


def _to_json(value: float) -> float | str:
    # JSON has no numbers for these, and a reader other than Python's stops at a bare NaN.
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"

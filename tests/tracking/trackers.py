"""Trackers as contexts, and what they log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fsae.outputs.metric_log import MetricSink
from fsae.tracking.mlflow_upload import RunDescription
from fsae.tracking.tracker import Tracker
from fsae.tracking.uploader import Uploader

Describe = Callable[..., RunDescription]
# Seconds between uploads.
PAUSE = 0.1


@contextmanager
def tracking(folder: Path, uploader: Uploader | None, position: int = 0, *, fresh: bool = False) -> Iterator[Tracker]:
    """Yield a tracker that is finished when the block ends, also by an exception."""
    tracker = Tracker(folder, uploader, position, fresh=fresh)
    try:
        yield tracker
    finally:
        tracker.finish()


def log_steps(sink: MetricSink, first: int, last: int) -> None:
    """Log ten values per step."""
    for step in range(first, last):
        sink.log({f"train/{n}": step + n / 10 for n in range(10)}, step=step)
        time.sleep(0.001)


def wait_for(condition: Callable[[], bool]) -> None:
    """Look whether the condition holds until it does; two minutes are too long."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

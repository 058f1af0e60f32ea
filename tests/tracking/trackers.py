"""Trackers as contexts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsae.tracking.tracker import Tracker
from fsae.tracking.uploader import Uploader


@contextmanager
def tracking(folder: Path, uploader: Uploader | None, position: int = 0, *, fresh: bool = False) -> Iterator[Tracker]:
    """Yield a tracker that is finished when the block ends, also by an exception."""
    tracker = Tracker(folder, uploader, position, fresh=fresh)
    try:
        yield tracker
    finally:
        tracker.finish()

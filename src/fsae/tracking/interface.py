"""What a training loop needs of tracking."""

from collections.abc import Mapping
from typing import Protocol


class MetricSink(Protocol):
    """Where a training loop's numbers go."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values at `step`, which counts tokens (samples where the data is not text).

        A name is logged at most once a step, and its steps rise. Never waits for a server.
        """
        ...

    def say(self, message: str) -> None:
        """Put a line into the run's own log."""
        ...

    def position(self) -> int:
        """How many bytes are recorded and safe on disk: what a checkpoint keeps, to resume from."""
        ...

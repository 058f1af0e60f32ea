"""A run's tracking: every value goes to `metrics.jsonl`, and from there to MLflow by a process beside the run."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from fsae.outputs.metric_log import MetricLog
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.run_log import logging_for
from fsae.ranges import Ranged, between
from fsae.tracking.server import checked_uri
from fsae.tracking.uploader import Uploader

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackingSettings(Ranged, group="tracking"):
    """Where a run's numbers go besides its folder.

    Attributes:
        mlflow: log to MLflow; without it only the folder's files are written.
        uri: the MLflow store; null takes MLFLOW_TRACKING_URI, or else mlflow.db in the outputs folder.
        experiment: MLflow's experiment.
        flush_seconds: how long the end of a run waits for MLflow while nothing arrives there.
    """

    mlflow: bool = True
    uri: str | None = None
    experiment: str = "fsae"
    flush_seconds: float = field(default=30.0, metadata=between(least=0, most=10**6))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.uri:
            checked_uri(self.uri, "tracking.uri")
        if not self.experiment:
            raise ValueError("tracking.experiment is empty: name the MLflow experiment, as in tracking.experiment=fsae")


class Tracker:
    """Records a run's values and, where MLflow is on, has them uploaded behind the run's back.

    Use it as a context, and `mark` how the run ended before leaving it: that is what MLflow is told.

    Args:
        folder: the run's folder, described (`describe_run`) where MLflow is on.
        uploader: what carries it to MLflow, or None for no MLflow.
        position: from the checkpoint that is resumed; what was logged after it is dropped, and logged again.
        anew: this is another run than the one whose values the folder may hold.

    Raises:
        ValueError: `metrics.jsonl` is shorter than `position`.
    """

    def __init__(self, folder: Path, uploader: Uploader | None, position: int = 0, *, anew: bool = False) -> None:
        if anew:
            for file in (RunFolder(folder).metrics, RunFolder(folder).dropped):
                file.unlink(missing_ok=True)
        self._metrics = MetricLog(RunFolder(folder).metrics, position, RunFolder(folder).dropped)
        self._folder = folder
        self._uploader = uploader
        if uploader:
            uploader.follow(folder)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values at `step` (tokens, or samples where the data is not text).

        A name is logged at most once a step, and its steps rise.

        Raises:
            ValueError: a name that MLflow would refuse.
            OSError: no space is left.
        """
        self._metrics.append(metrics, step)

    def log_message(self, message: str) -> None:
        """Put a line into the run's own log."""
        with logging_for(self._folder):
            log.info(message)

    def position(self) -> int:
        """Bytes recorded and safe on disk: what a checkpoint keeps."""
        return self._metrics.position()

    def finish(self) -> None:
        """Close the file and let MLflow have the rest; again is harmless.

        Raises:
            OSError: no space is left.
        """
        uploader, self._uploader = self._uploader, None
        try:
            self._metrics.close()
        finally:
            if uploader:
                uploader.end(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()

"""A run's tracking: values are appended to `metrics.jsonl`, and a separate process uploads them to MLflow."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fsae.outputs.metric_log import MetricLog
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.run_log import logging_for
from fsae.ranges import Ranged, between
from fsae.tracking.server import checked_uri
from fsae.tracking.uploader import Uploader

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackingSettings(Ranged, group="tracking"):
    """Settings of a run's logging outside its folder.

    Attributes:
        mlflow: log to MLflow; if false only the folder's files are written.
        uri: the tracking server or database; null for MLFLOW_TRACKING_URI, or else mlflow.db in the outputs folder.
        experiment: MLflow's experiment.
        flush_seconds: how long the end of a run waits for MLflow while nothing is uploaded.
        latents_mb: the pages of latents are uploaded, as one archive, if they have at most so many megabytes.
    """

    mlflow: bool = True
    uri: str | None = None
    experiment: str = "fsae"
    flush_seconds: float = field(default=30.0, metadata=between(least=0, most=10**6))
    latents_mb: float = field(default=50.0, metadata=between(least=0, most=10**9))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.uri:
            checked_uri(self.uri, "tracking.uri")
        if not self.experiment:
            raise ValueError("tracking.experiment is empty: name the MLflow experiment, as in tracking.experiment=fsae")


class Tracker:
    """Recorder of a run's values; if MLflow is on, another process uploads them.

    `mark` how the run ended before calling `finish`, which sends the status to MLflow.

    Args:
        folder: the run's folder; with an uploader it must be described (`describe_run`).
        uploader: the process that uploads the folder to MLflow, or None for no MLflow.
        position: the position in the resumed checkpoint; values logged after it are dropped and logged again.
        fresh: drop all existing values in the folder, because they belong to another run.

    Raises:
        ValueError: `metrics.jsonl` is shorter than `position`.
    """

    def __init__(self, folder: Path, uploader: Uploader | None, position: int = 0, *, fresh: bool = False) -> None:
        if fresh:
            for file in (RunFolder(folder).metrics, RunFolder(folder).dropped):
                file.unlink(missing_ok=True)
        self._metrics = MetricLog(RunFolder(folder).metrics, position, RunFolder(folder).dropped)
        self._folder = folder
        self._uploader = uploader
        if uploader:
            uploader.follow(folder)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values at `step`, which counts samples (tokens if the data is text).

        A name is logged at most once per step, and its steps increase.

        Raises:
            ValueError: a name that MLflow would refuse.
            OSError: no space is left.
        """
        self._metrics.append(metrics, step)

    def log_message(self, message: str) -> None:
        """Write a line to the run's own log."""
        with logging_for(self._folder):
            log.info(message)

    def position(self) -> int:
        """Return the number of bytes that are recorded and safe on disk, for a checkpoint."""
        return self._metrics.position()

    def finish(self) -> None:
        """Close the file and ask the uploader to send the rest; calling it again does nothing.

        Raises:
            OSError: no space is left.
        """
        uploader, self._uploader = self._uploader, None
        try:
            self._metrics.close()
        finally:
            if uploader:
                uploader.end(self._folder)

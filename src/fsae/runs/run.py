"""A run under way: it locks its folder, and writes its numbers and its status there."""

import errno
import json
import logging
import time
import traceback
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fsae.configuration.origin import Origin
from fsae.configuration.refusal import report_error
from fsae.configuration.schema import RunSettings, Task
from fsae.files import replacing, write_json
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.run_log import logging_for
from fsae.outputs.status import Failure, RunState, mark, read_status
from fsae.outputs.sweep_folder import run_name_and_tags
from fsae.tracking.mlflow_upload import describe_run, read_description
from fsae.tracking.server import resolve_uri
from fsae.tracking.tags import run_tags
from fsae.tracking.tracker import Tracker
from fsae.tracking.uploader import Uploader
from fsae.training.checkpoints import Checkpoints
from fsae.training.interruption import Interrupted

log = logging.getLogger(__name__)


class Run:
    """A run under way, from locking its folder to writing its final status.

    Args:
        settings: the run's settings.
        origin: the origin of the settings.
        data: the identity of the run's data (`data_identity`); a checkpoint of other data is refused.

    Attributes:
        settings: the run's settings.
        origin: the origin of the settings.
        folder: the run's folder.
        checkpoints: the checkpoints in the folder.
        state: the checkpoint's state from which the run resumes; None for a new run.
        results: the evaluation's numbers by name; None before the evaluation.
        error: the error that ended the run early.
        over: whether the run has ended, with or without an error.
    """

    def __init__(self, settings: RunSettings, origin: Origin, data: dict[str, str]):
        self.settings, self.origin = settings, origin
        self.folder = RunFolder(origin.folder)
        self.checkpoints = Checkpoints(self.folder.checkpoints, origin.deciding, data)
        self.state: dict[str, Any] | None = None
        self._tracker: Tracker | None = None
        self.results: dict[str, Any] | None = None
        self.error: BaseException | None = None
        self.over = False
        self._lock = FileLock(self.folder.path / "run.lock")
        self._began = False

    @property
    def exported(self) -> Path:
        """Return the folder of the existing autoencoder that the run evaluates."""
        return self.settings.existing()

    @property
    def best(self) -> int:
        """Return the number of the existing autoencoder that was best in training."""
        return 0

    @property
    def identity(self) -> str | None:
        """Return a digest of all that decides the numbers of its evaluations besides their settings; None to measure in
        any case."""
        return None

    @property
    def tracking_uri(self) -> str:
        """Return the address of MLflow's data."""
        return resolve_uri(self.settings.tracking.uri, Path(self.settings.paths.outputs))

    @property
    def tracker(self) -> Tracker:
        """Return the tracker that logs the run's numbers."""
        assert self._tracker is not None, "the run has not begun"
        return self._tracker

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Do work for this run alone: an error ends the run and is kept in `error` instead of being raised.

        Raises:
            Interrupted: a signal concerns the whole process.
        """
        with logging_for(self.folder.path):
            try:
                yield
            except Interrupted:
                raise
            except Exception as error:
                self.end(error)

    def claim(self) -> None:
        """Lock the folder and read its checkpoint.

        Raises:
            ValueError: another process has locked the folder, or its checkpoint is damaged or has other settings. The
                folder is not changed.
        """
        path = self.folder.path
        path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
            self.state = self.checkpoints.load()
        except (Timeout, ValueError) as error:
            self._lock.release()
            busy = f"another process is running in {path}; wait for it, or change a setting or `name`"
            raise (ValueError(busy) if isinstance(error, Timeout) else error) from None

    def begin(self, uploader: Uploader | None) -> None:
        """Write into the claimed folder that the run is running, and open its tracker.

        Raises:
            OSError: no space is left.
        """
        path = self.folder.path
        self._began = True
        earlier = read_status(path)
        mark(path, RunState.running)
        overrides = "".join(f"- {json.dumps(override)}\n" for override in self.origin.overrides)
        for file, text in ((self.folder.config, self.origin.config_yaml), (self.folder.overrides, overrides)):
            with replacing(file) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
        stopped = earlier is not None and earlier.state in (RunState.running, RunState.interrupted)
        position = self.state["metrics_position"] if self.state is not None else 0
        anew = self._describe(stopped)
        self._tracker = Tracker(path, uploader, position, fresh=anew)

    def _describe(self, stopped: bool) -> bool:
        """Write the run's description for MLflow; return whether the run is another than the folder's earlier one."""
        path = self.folder.path
        named = self.settings.task is Task.train and self.settings.name is not None
        name, sweep_tags = run_name_and_tags(path, self.origin.overrides, self.origin.flat["loss.penalty"], named)
        # A resumed run continues the same MLflow run. So does a run that was stopped before its first checkpoint, which
        # logs the same values again. A run that begins again after its end is another MLflow run.
        resumed = self.state is not None
        earlier = read_description(path).uid if resumed or (stopped and self.folder.tracking.exists()) else None
        uid = earlier if resumed else None if stopped else uuid.uuid4().hex
        # The description is written even without MLflow, so that the run can be sent there later.
        described = describe_run(
            path,
            uri=self.tracking_uri,
            outputs=Path(self.settings.paths.outputs),
            experiment=self.settings.tracking.experiment,
            run_name=name,
            params=self.origin.flat,
            tags=run_tags(self.origin.overrides)
            | {"fsae.kind": self.settings.task.value, "fsae.data": self.checkpoints.data_digest}
            | sweep_tags,
            uid=uid,
            latents_mb=self.settings.tracking.latents_mb,
        )
        return described.uid != earlier

    def log_results(self, numbers: Mapping[str, float], samples: int) -> None:
        """Log the numbers of the evaluation at a number of training samples."""
        self.tracker.log(numbers, samples)

    def write_results(self, results: dict[str, Any]) -> None:
        """Write `results.json`."""
        write_json(self.folder.results, results)
        self.results = results

    def end(self, error: BaseException | None = None) -> None:
        """Write the final status, log it to MLflow, and release the folder; a second call does nothing."""
        if self.over:
            return
        self.over = True
        with logging_for(self.folder.path):
            self.error = error and _naming_the_folder(error, self.folder.path)
            if self._began:
                self._write_end()
            if isinstance(self.error, Exception) and not isinstance(self.error, Interrupted):
                # The error is reported now, and not after the uploader has finished.
                report_error(self.error, self.folder.path)
            if error is not None:
                # The frames hold the run's weights; the other runs of the pack may need that memory.
                traceback.clear_frames(error.__traceback__)
        self._lock.release()

    def _write_end(self) -> None:
        for write in (self._mark_end, self._close_tracker):
            try:
                write()
            except OSError as unwritten:
                self.error = self.error or _naming_the_folder(unwritten, self.folder.path)

    def _mark_end(self) -> None:
        path, error = self.folder.path, self.error
        if error is None:
            mark(path, RunState.finished)
        else:
            state = RunState.interrupted if isinstance(error, Interrupted) else RunState.failed
            if isinstance(error, Interrupted) and not error.saved and self.checkpoints.path.exists():
                age = time.time() - self.checkpoints.path.stat().st_mtime
                log.warning("the last %.0f s of training are lost", age)
            mark(path, state, Failure(kind=type(error).__name__, message=str(error)))

    def _close_tracker(self) -> None:
        if self._tracker is not None:
            self._tracker.finish()


def _naming_the_folder(error: BaseException, folder: Path) -> BaseException:
    """Return the error; for a full disk, one that names the folder, which the system's message does not."""
    if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
        return error
    placed = OSError(f"no space left for {folder}; free some, and the same command resumes the run")
    placed.__cause__ = error
    return placed


def going(runs: Iterable[Run]) -> list[Run]:
    """Return the runs that have not ended."""
    return [run for run in runs if not run.over]

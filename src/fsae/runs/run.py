"""One run's folder while the run is under way: it is ours alone, numbers go into it, and how the run ended."""

import errno
import json
import logging
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fsae.configuration.accept import Origin
from fsae.configuration.refusal import report_error
from fsae.configuration.schema import RunSettings
from fsae.files import write_json
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
    """A run under way, from taking its folder to writing how it ended.

    Args:
        settings: what it was told.
        origin: where that came from.
        data: what its settings' data are (`data_identity`); a checkpoint of other data is refused.

    Attributes:
        settings: what it was told.
        origin: where that came from.
        folder: the run's own.
        checkpoints: in the folder.
        state: of the checkpoint that it goes on from, or None at its beginning.
        results: the evaluation's numbers by name, once there are any.
        error: what ended it early.
        over: whether it has ended, either way.
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
        """The existing autoencoder that the run evaluates."""
        return self.settings.existing()

    @property
    def best(self) -> int:
        """Which of the existing autoencoders was best in training."""
        return 0

    @property
    def tracker(self) -> Tracker:
        """Where its numbers go."""
        assert self._tracker is not None, "the run has not begun"
        return self._tracker

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What is done for this run and no other: an error ends it and is kept in `error` instead of being raised.

        Raises:
            Interrupted: that is about the whole process.
        """
        with logging_for(self.folder.path):
            try:
                yield
            except Interrupted:
                raise
            except Exception as error:
                self.end(error)

    def claim(self) -> None:
        """Take the folder, and read the state that it holds.

        Raises:
            ValueError: another process has it, or its checkpoint is damaged or of other settings; it is left as it is.
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
        """Say in the claimed folder that the run is running, and open its tracker.

        Raises:
            OSError: no space is left.
        """
        path = self.folder.path
        self._began = True
        earlier = read_status(path)
        mark(path, RunState.running)
        self.folder.config.write_text(self.origin.config_yaml)
        self.folder.overrides.write_text("".join(f"- {json.dumps(override)}\n" for override in self.origin.overrides))
        stopped = earlier is not None and earlier.state in (RunState.running, RunState.interrupted)
        position = self.state["metrics_position"] if self.state is not None else 0
        anew = self._describe(stopped)
        self._tracker = Tracker(path, uploader, position, fresh=anew)

    def _describe(self, stopped: bool) -> bool:
        """Write down where the run is logged; returns whether it is another than the one that was here before."""
        path, tracking, outputs = self.folder.path, self.settings.tracking, Path(self.settings.paths.outputs)
        name, sweep_tags = run_name_and_tags(path, self.origin.overrides, self.origin.flat["loss.penalty"])
        # A resumed run goes on in the same MLflow run, also where it was stopped before it had a state to go on from:
        # it logs the same values again. One that starts over after its end is another.
        resumed = self.state is not None
        earlier = read_description(path).uid if resumed or (stopped and self.folder.tracking.exists()) else None
        uid = earlier if resumed else None if stopped else uuid.uuid4().hex
        # Also without MLflow, so that the run can be sent there later.
        described = describe_run(
            path,
            uri=resolve_uri(tracking.uri, outputs),
            outputs=outputs,
            experiment=tracking.experiment,
            run_name=name,
            params=self.origin.flat,
            tags=run_tags(self.origin.overrides)
            | {"fsae.kind": self.settings.task.value, "fsae.data": self.checkpoints.data_digest}
            | sweep_tags,
            uid=uid,
        )
        return described.uid != earlier

    def log_results(self, numbers: Mapping[str, float], samples: int) -> None:
        """Log the numbers of the evaluation, after so many samples of training."""
        self.tracker.log(numbers, samples)

    def write_results(self, results: dict[str, Any]) -> None:
        """Write `results.json`."""
        write_json(self.folder.results, results)
        self.results = results

    def end(self, error: BaseException | None = None) -> None:
        """Write how it ended, let go of the folder, and have MLflow told; only the first end counts."""
        if self.over:
            return
        self.over = True
        with logging_for(self.folder.path):
            self.error = error and _naming_the_folder(error, self.folder.path)
            if self._began:
                self._write_end()
            if isinstance(self.error, Exception) and not isinstance(self.error, Interrupted):
                # Now, not after tracking had its time to say goodbye.
                report_error(self.error, self.folder.path)
            if error is not None:
                # The frames hold the run's weights, which the runs beside it may need the room of.
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
                log.warning("what was trained in the last %.0f s is lost", age)
            mark(path, state, Failure(kind=type(error).__name__, message=str(error)))

    def _close_tracker(self) -> None:
        if self._tracker is not None:
            self._tracker.finish()


def _naming_the_folder(error: BaseException, folder: Path) -> BaseException:
    """The error; one for people to mend where a disk was full, which the system's own message does not place."""
    if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
        return error
    placed = OSError(f"no space left for {folder}; free some and start the same command again, it goes on from there")
    placed.__cause__ = error
    return placed


def going(runs: Iterable[Run]) -> list[Run]:
    """Return the runs that have not ended."""
    return [run for run in runs if not run.over]


def for_each(runs: Iterable[Run], action: Callable[[Run], None]) -> None:
    """Do it for every run that has not ended; where it fails that run ends, and no other."""
    for run in going(runs):
        with run.alone():
            action(run)

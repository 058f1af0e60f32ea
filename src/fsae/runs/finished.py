"""A finished run that is evaluated again, in its own folder: new numbers join the earlier ones, the rest is kept."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import Timeout

import fsae
from fsae.configuration.recorded import evaluated_dictionary
from fsae.evaluation.kept import versions
from fsae.files import digest_of, write_json
from fsae.outputs.metric_log import read_metrics
from fsae.outputs.results import merged, read_results
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import RunState, read_status
from fsae.runs.run import Run
from fsae.tracking.mlflow_upload import read_description
from fsae.tracking.tracker import Tracker
from fsae.tracking.uploader import Uploader

log = logging.getLogger(__name__)


class FinishedRun(Run):
    """A finished run under evaluation, from taking its folder to writing its numbers.

    It stays finished even if the evaluation fails: `status.json`, the exported autoencoder and the checkpoint are only
    read.
    """

    @property
    def exported(self) -> Path:
        # A run of task=eval has none of its own.
        return self.folder.sae if self.settings.sae.path is None else self.settings.existing()

    @property
    def best(self) -> int:
        return int(read_results(self.folder.results).get("eval/best_member") or 0)

    @property
    def identity(self) -> str:
        files = {
            path.relative_to(self.exported).as_posix(): sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.exported.rglob("*"))
            if path.is_file()
        }
        settings = {
            name: value
            for name, value in self.origin.deciding.items()
            if not name.startswith(("eval.", "suite.")) and name != "eval"
        }
        code = versions(Path(fsae.__file__).parent)
        return digest_of({"files": files, "settings": settings, "data": self.checkpoints.data_digest, "code": code})

    def claim(self) -> None:
        """Take the folder.

        Raises:
            ValueError: another process has it, the run is not finished, or it has no exported autoencoder.
        """
        path = self.folder.path
        try:
            check_finished(path)
            self._lock.acquire(timeout=0)
        except (Timeout, ValueError) as error:
            self._lock.release()
            busy = f"another process works in {path}; wait for it"
            raise (ValueError(busy) if isinstance(error, Timeout) else error) from None
        # A run of task=eval resumes nothing, so it has no digest of its data.
        of_data = self.settings.sae.path is None
        if of_data and read_description(path).tags.get("fsae.data") != self.checkpoints.data_digest:
            log.warning("the files behind the model or the data set of %s changed since it was trained", path)

    def begin(self, uploader: Uploader | None) -> None:
        """Open the tracker after the last complete line of the log."""
        metrics = self.folder.metrics
        # A kill during a write leaves a partial line, which is dropped.
        end = max((record.end for record in read_metrics(metrics)), default=0) if metrics.exists() else 0
        self._began = True
        self._tracker = Tracker(self.folder.path, uploader, end)

    def log_results(self, numbers: Mapping[str, float], samples: int) -> None:
        """Log the numbers at the last step that the run logged."""
        last = max((record.step for record in read_metrics(self.folder.metrics)), default=samples)
        self.tracker.log(self._joining(numbers), last)

    def write_results(self, results: dict[str, Any]) -> None:
        """Write `results.json` with the new numbers in place of earlier ones; all others are kept."""
        evaluated = {"evaluated": datetime.now(UTC).isoformat()}
        self.results = merged(read_results(self.folder.results), self._joining(results)) | evaluated
        write_json(self.folder.results, self.results)

    def _joining(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the numbers that join the earlier ones.

        The counts of samples are those of `vectors`: they stay if only other evaluations are repeated.
        """
        counted = "vectors" in self.settings.eval
        return {name: value for name, value in numbers.items() if counted or not name.startswith("data/")}

    def _write_end(self) -> None:
        self._close_tracker()


def check_finished(folder: Path) -> None:
    """Raise ValueError if the folder is not that of a finished run with an exported autoencoder and data to read."""
    status = read_status(folder)
    if status is None:
        raise ValueError(f"{folder} is not a run's folder: it has no status.json")
    if status.state is not RunState.finished:
        raise ValueError(
            f"the run in {folder} is {status.state.value}, and only a finished one can be evaluated again; give its "
            "command again, or finish its sweep with fsae.resume"
        )
    evaluated = evaluated_dictionary(folder)
    if not (evaluated or RunFolder(folder).sae).is_dir():
        where = f"{evaluated} is gone" if evaluated else f"{folder} has no sae/"
        raise ValueError(f"{where}: there is no exported autoencoder to evaluate")
    if read_description(folder).params.get("source") == "vectors":
        raise ValueError(
            f"the run in {folder} was trained by fsae.train in Python: its vectors were in that process' memory. "
            f"Evaluate it in Python, as in fsae.evaluate(fsae.load({str(folder)!r}), vectors)"
        )

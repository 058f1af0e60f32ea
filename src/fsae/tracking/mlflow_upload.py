"""The upload of one run to MLflow, from its folder alone: metrics, parameters, tags, artifacts and its end.

No state of the upload is kept on disk. The run is found by its tag `fsae.uid`, and MLflow itself knows the last step of
each metric, so an upload may be cut off anywhere and continued by any process without losing a value. Nor are values
doubled, although two processes may upload at once and an abandoned request may still be carried out: each of them would
send the same value with the same time, which MLflow keeps once. If a resumed run logs values a second time after a
kill, MLflow gets those that were logged first.
"""

import json
import logging
import math
import re
import shlex
import sys
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZipFile

from filelock import FileLock

from fsae.credentials import concealed, without_password
from fsae.errors import first_line
from fsae.files import whole_files, write_json
from fsae.outputs.metric_log import MetricRecord, read_metrics
from fsae.outputs.results import MEASURED, in_order, meanings_in, read_results
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import RunState, RunStatus, read_status
from fsae.tracking.server import artifact_root, open_client, python_command, run_link, shell_command

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

# MLflow's limits for one request and one value.
METRICS_PER_BATCH = 1000
PARAM_LENGTH = 6000
TAG_LENGTH = 8000

UID_TAG = "fsae.uid"
# Set last, to the time at which the run ended: everything about that end has been uploaded.
DELIVERED_TAG = "fsae.delivered"
FOLDER_TAG = "fsae.folder"

MLFLOW_STATUS = {
    RunState.finished: "FINISHED",
    RunState.failed: "FAILED",
    RunState.refused: "FAILED",
    RunState.interrupted: "KILLED",
}

# Errors of servers, PostgreSQL and MySQL that ask for a password.
_NO_ENTRY = re.compile(r"error code 40[13]\b|password authentication failed|no password supplied|Access denied for")

# Numbers of which a finished run that is evaluated again may have another value at the same step.
REPLACED = (MEASURED, "data/")

BAR = "\\|"  # a | inside a table's cell
PARAMS_AT_ONCE = 100  # MLflow refuses more in one request


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """The content of `tracking.json`: enough to log the run later from another process.

    Attributes:
        uid: identifies the run over resumes and uploads.
        uri: the tracking server or database, without a password.
        outputs: the outputs folder, which holds artifacts unless a server does.
        params: the flattened configuration.
        latents_mb: the largest folder `latents/` that is uploaded, in megabytes.
    """

    uid: str
    uri: str
    outputs: str
    experiment: str
    run_name: str
    params: dict[str, str]
    tags: dict[str, str]
    latents_mb: float = 0.0


def describe_run(
    folder: Path,
    *,
    uri: str,
    outputs: Path,
    experiment: str,
    run_name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    uid: str | None = None,
    latents_mb: float = 0.0,
) -> RunDescription:
    """Write the folder's `tracking.json`.

    Args:
        uid: the uid in the checkpoint of a resumed run. By default a folder that was described before with the same
            parameters remains the same run, and any other is a new run.
        latents_mb: the largest folder `latents/` that is uploaded, in megabytes.

    Raises:
        ValueError: an earlier `tracking.json` is damaged.
    """
    params = {name: str(value)[:PARAM_LENGTH] for name, value in params.items()}
    if uid is None and RunFolder(folder).tracking.exists():
        earlier = read_description(folder)
        uid = earlier.uid if earlier.params == params else None
    description = RunDescription(
        uid=uid or uuid.uuid4().hex,
        uri=without_password(uri),
        outputs=str(outputs.absolute()),
        experiment=experiment,
        run_name=run_name,
        params=params,
        tags={name: value[:TAG_LENGTH] for name, value in tags.items()},
        latents_mb=latents_mb,
    )
    write_json(RunFolder(folder).tracking, asdict(description))
    return description


def read_description(folder: Path) -> RunDescription:
    """Read what `describe_run` wrote.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = RunFolder(folder).tracking
    try:
        return RunDescription(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not a run's folder: it holds no {path.name}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} does not describe a run ({error}); it may be cut off") from error


class MlflowUpload:
    """An upload to MLflow of what it lacks of one folder.

    Every method may raise any exception of MLflow's if the tracking server is unreachable; calling it again continues
    the upload.

    Args:
        folder: a run's folder, described.
        uri: the tracking server or database, with its password.
        description: the folder's description.
        arrived: called whenever MLflow has accepted something.

    Attributes:
        position: bytes of `metrics.jsonl` known to be in MLflow.
        link: address of the run's page, once it is known.
        obstacle: what a person must correct before anything can be uploaded; "" if nothing.
    """

    def __init__(
        self, folder: Path, uri: str, description: RunDescription, arrived: Callable[[], None] = lambda: None
    ) -> None:
        self._arrived = arrived
        self.folder = RunFolder(folder)
        self.uri = uri
        self.description = description
        self.position = 0
        self.link: str | None = None
        self.obstacle = ""
        self._dropped: list[MetricRecord] = []
        self._dropped_size = 0
        self._is_open = False
        self._lock = FileLock(folder / ".upload.lock")

    def send_metrics(self) -> int:
        """Send the values logged since the last call; returns their number."""
        if not self._is_open:
            self._open()
        sent = 0
        for batch in self._batches():
            sent += self._send([*self._dropped_until(batch[-1].step), *batch])
            self.position = batch[-1].end
        return sent + self._send(self._dropped_until(math.inf))

    def close(self) -> bool:
        """Log how the run ended, its summary and its artifacts; returns False if MLflow has them already.

        Does nothing for a run that is still running.
        """
        if not self._is_open:
            self._open()
        # One process at a time, and each by the current status: the uploader of a killed run may be late, and the run
        # may have been resumed or have ended in the meantime.
        with self._lock:
            status = read_status(self.folder.path)
            if status is None or status.is_alive():
                return False
            self._is_open = False
            news = self._close(status)
            self._is_open = True
            return news

    def _close(self, status: RunStatus) -> bool:
        ended = status.ended or status.updated
        client, run_id = self._client, self._run_id
        delivered = self._delivered(ended)
        if client.get_run(run_id).data.tags.get(DELIVERED_TAG) == delivered:
            return False
        # The status is "running" but the process is gone: it was killed and could not write another status.
        killed = status.state is RunState.running
        # The status comes before the artifacts: it is small, and must not depend on the upload of a picture.
        client.set_terminated(run_id, "KILLED" if killed else MLFLOW_STATUS[status.state], _milliseconds(ended))
        client.set_tag(run_id, "fsae.state", "killed" if killed else status.state.value)
        client.set_tag(run_id, "mlflow.note.content", self._summary(status))
        folder = self.folder
        for file in (folder.config, folder.overrides, folder.results, folder.status, folder.log):
            if file.exists():
                client.log_artifact(run_id, str(file))
                self._arrived()
        for directory in (folder.plots, folder.sae, folder.evaluations):
            for file in whole_files(directory):
                below = file.parent.relative_to(folder.path).as_posix()
                client.log_artifact(run_id, str(file), artifact_path=below)
                self._arrived()
        self._upload_latents(client, run_id)
        client.set_tag(run_id, DELIVERED_TAG, delivered)
        return True

    def _upload_latents(self, client: "MlflowClient", run_id: str) -> None:
        """Upload the pages of latents as one archive: their scripts do not load from MLflow's view of a file."""
        folder = self.folder.latents
        files = whole_files(folder)
        size = sum(path.stat().st_size for path in files) / 1e6
        if not files:
            return
        if size > self.description.latents_mb:
            log.info(
                "%s is not uploaded: it has %.0f MB, and tracking.latents_mb is %g",
                folder, size, self.description.latents_mb,
            )  # fmt: skip
            return
        with TemporaryDirectory() as aside:
            archive = Path(aside) / "latents.zip"
            with ZipFile(archive, "w", ZIP_DEFLATED) as opened:
                for path in files:
                    opened.write(path, path.relative_to(self.folder.path))
            client.log_artifact(run_id, str(archive))
        self._arrived()

    def _delivered(self, ended: datetime) -> str:
        """Return the value of the run's last tag: its end, or the time at which a finished run was last evaluated."""
        return str(read_results(self.folder.results).get("evaluated") or ended.isoformat())

    def unsent(self) -> int:
        """Return how many values of `metrics.jsonl` are not known to be in MLflow."""
        if not self.folder.metrics.exists():
            return 0
        return sum(len(record.metrics) for record in read_metrics(self.folder.metrics, self.position))

    def _open(self) -> None:
        from mlflow.entities import Param, RunTag

        client = open_client(self.uri)
        description = self.description
        experiment_id = find_or_create_experiment(client, description.experiment, self.uri, Path(description.outputs))
        status = read_status(self.folder.path)
        # Two processes may upload one folder, the run's uploader and `fsae.sync`: they must not create two runs.
        with self._lock:
            found = client.search_runs([experiment_id], f"tags.`{UID_TAG}` = '{self.description.uid}'", max_results=1)
            run = (
                found[0]
                if found
                else client.create_run(
                    experiment_id,
                    start_time=_milliseconds(status.started) if status else None,
                    run_name=self.description.run_name,
                    tags={UID_TAG: self.description.uid},
                )
            )
        run_id = run.info.run_id
        missing = [Param(name, text) for name, text in self.description.params.items() if name not in run.data.params]
        tags = [RunTag(name, text) for name, text in self.description.tags.items()]
        tags.append(RunTag(FOLDER_TAG, str(self.folder.path.absolute())))
        if not found:
            tags.append(RunTag("mlflow.note.content", self._summary(status)))
        client.log_batch(run_id, tags=tags)
        for begin in range(0, len(missing), PARAMS_AT_ONCE):
            client.log_batch(run_id, params=missing[begin : begin + PARAMS_AT_ONCE])
        if status and status.state is RunState.running and run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        self._client, self._run_id = client, run_id
        # For each metric, MLflow's record of a run has the value at the highest step.
        stored = run.to_proto().data.metrics
        self._stored_step = {metric.key: metric.step for metric in stored}
        replaced = [metric for metric in stored if metric.key.startswith(REPLACED)]
        self._stored_value = {metric.key: (metric.timestamp, metric.value) for metric in replaced}
        self.link = run_link(self.uri, experiment_id, run_id)
        self._dropped, self._dropped_size = [], 0
        self._is_open = True

    def _batches(self) -> Iterator[list[MetricRecord]]:
        if not self.folder.metrics.exists():
            return
        batch: list[MetricRecord] = []
        size = 0
        for record in read_metrics(self.folder.metrics, self.position):
            if batch and size + len(record.metrics) > METRICS_PER_BATCH:
                yield batch
                batch, size = [], 0
            batch.append(record)
            size += len(record.metrics)
        if batch:
            yield batch

    def _dropped_until(self, step: float) -> list[MetricRecord]:
        """Return the dropped values up to this step, which were logged first, except those returned before.

        Another process may have sent them or be sending them. To MLflow the same value at the same time is one value,
        but a value logged again at the same step would be a second one. The file is therefore read after the values
        that the dropped ones precede: these may belong to a run that has resumed only now.
        """
        file = self.folder.dropped
        size = file.stat().st_size if file.exists() else 0
        if size != self._dropped_size:
            self._dropped_size = size
            self._dropped = sorted(read_metrics(file), key=lambda record: record.step)
        count = bisect_right(self._dropped, step, key=lambda record: record.step)
        until, self._dropped = self._dropped[:count], self._dropped[count:]
        return until

    def _send(self, records: list[MetricRecord]) -> int:
        from mlflow.entities import Metric

        stored, measured = dict(self._stored_step), dict(self._stored_value)
        metrics = []
        # Within one step the values that were logged first come first.
        for record in sorted(records, key=lambda record: record.step):
            for name, value in record.metrics.items():
                # MLflow draws bars for metrics whose only step is 0, and lines for others, which would be points here.
                is_measured = name.startswith(MEASURED)
                step = 0 if is_measured else record.step
                is_news = step > stored.get(name, -1)
                if not is_news and name in measured and step == stored[name]:
                    # Values before the stored one were replaced by it.
                    time_ms, latest = measured[name]
                    is_news = record.time_ms > time_ms and not _same(latest, value)
                if is_news:
                    stored[name] = step
                    if name.startswith(REPLACED):
                        measured[name] = record.time_ms, value
                    metrics.append(Metric(name, value, record.time_ms, step))
        # After a failure, MLflow is asked again for what it has.
        self._is_open = False
        # A single record can hold more than one batch.
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + METRICS_PER_BATCH])
            self._arrived()
        self._stored_step, self._stored_value, self._is_open = stored, measured, True
        return len(metrics)

    def _summary(self, status: RunStatus | None) -> str:
        lines = [f"Folder: `{self.folder.path.absolute()}`"]
        lines += [f"Latents: `{page.absolute()}`" for page in self.folder.latent_pages]
        if status and status.failure:
            lines.append(f"**{status.state.value}**: {status.failure.kind}: {status.failure.message[:1000]}")
        if self.folder.results.exists():
            results = read_results(self.folder.results)
            # The numbers of a population's members, such as eval/0/fvu, are among the metrics.
            meanings = meanings_in(results)
            rows = [
                f"| {name} | {results[name]:.4g} | {str(meanings[name]).replace('|', BAR)} |"
                for name in in_order(meanings)
                if isinstance(results.get(name), int | float)
            ]
            lines.append("\n".join(["| held out | | |", "| --- | --- | --- |", *rows]))
        return "\n\n".join(lines)[:TAG_LENGTH]


class DeletedExperimentError(ValueError):
    """The experiment was deleted in MLflow, which still reserves its name."""

    def __init__(self, name: str, experiment_id: str, uri: str) -> None:
        variable = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} " if without_password(uri) == uri else ""
        super().__init__(
            f"tracking.experiment={name}: this experiment was deleted in MLflow; restore it with "
            f"`{variable}{python_command()} -m mlflow experiments restore -x {experiment_id}`, or name another"
        )


def find_or_create_experiment(client: Any, name: str, uri: str, outputs: Path) -> str:
    """Return the experiment's id; several processes may try at once.

    Raises:
        DeletedExperimentError: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    root = artifact_root(uri, outputs)
    if experiment := client.get_experiment_by_name(name):
        if experiment.lifecycle_stage != "active":
            raise DeletedExperimentError(name, experiment.experiment_id, uri)
        return experiment.experiment_id
    try:
        return client.create_experiment(
            name,
            artifact_location=root.as_uri() if root else None,
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
    except MlflowException:
        # Another run may have created it in between.
        if experiment := client.get_experiment_by_name(name):
            return experiment.experiment_id
        raise


def sync_command(folder: Path) -> str:
    """Return the command that uploads a folder to MLflow later."""
    return shell_command("sync", folder)


def reason_of(error: Exception) -> str:
    """Return the reason of an MLflow error in one line without secrets; its full text may have pages."""
    if isinstance(error, DeletedExperimentError):
        return str(error)
    line = concealed(first_line(error))[:200]
    if _NO_ENTRY.search(str(error)):
        line += (
            " (the tracking server asks for a name and a password: export MLFLOW_TRACKING_URI with them, as in "
            "http://user:password@host, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"
        )
    return line


def _same(stored: float, value: float) -> bool:
    """Return whether MLflow has stored this value; it stores infinity as the largest finite number."""
    if math.isnan(stored) or math.isnan(value):
        return math.isnan(stored) and math.isnan(value)
    kept = [max(-sys.float_info.max, min(sys.float_info.max, each)) for each in (stored, value)]
    return kept[0] == kept[1]


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)

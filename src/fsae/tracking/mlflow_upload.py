"""One run's way into MLflow, from its folder only: metrics, parameters, tags, artifacts and how it ended.

Nothing about the upload is kept on disk. The run is found again by its tag `fsae.uid`, and MLflow itself says up to
which step it holds each metric, so an upload may be cut off anywhere and be taken up by any other process: nothing is
lost, nothing is doubled. That also holds after a kill, when a resumed run logs again what MLflow already has.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from fsae.tracking.run_folder import RunFolder, write_json
from fsae.tracking.spool import MetricRecord, read_metrics
from fsae.tracking.status import RunState, RunStatus, read_status
from fsae.tracking.store import artifact_root, open_store, run_link, shell_command, without_password

# MLflow's limits for one request and one value.
METRICS_PER_BATCH = 1000
PARAM_LENGTH = 6000
TAG_LENGTH = 8000

UID_TAG = "fsae.uid"
# Set last, to the time at which the run ended: everything about that end has arrived.
DELIVERED_TAG = "fsae.delivered"
FOLDER_TAG = "fsae.folder"

MLFLOW_STATUS = {
    RunState.finished: "FINISHED",
    RunState.failed: "FAILED",
    RunState.refused: "FAILED",
    RunState.interrupted: "KILLED",
}

PARAMS_AT_ONCE = 100  # more in one request are refused


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """What `tracking.json` says about a run, enough to log it from another process on another day.

    Attributes:
        uid: names the run over resumes and uploads.
        uri: the MLflow store, without a password.
        outputs: the outputs folder, where artifacts go unless the store has its own place for them.
        params: the flattened configuration.
    """

    uid: str
    uri: str
    outputs: str
    experiment: str
    run_name: str
    params: dict[str, str]
    tags: dict[str, str]


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
) -> RunDescription:
    """Write the folder's `tracking.json`.

    Args:
        uid: of the run that is resumed, from its checkpoint. Left out, a folder described before with the same
            parameters stays the same run, and any other is a new one.

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
    )
    write_json(RunFolder(folder).tracking, asdict(description))
    return description


def read_description(folder: Path) -> RunDescription:
    """What `describe_run` wrote.

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
    """Sends one folder's contents to MLflow, as far as they are not there yet.

    Every method may raise whatever MLflow raises when its store is away; calling it again goes on from there.

    Args:
        folder: a run's folder, described.
        uri: the store, with its password.
        description: the folder's.

    Attributes:
        position: bytes of `metrics.jsonl` known to be in MLflow.
        link: address of the run's page, once it is known.
    """

    def __init__(self, folder: Path, uri: str, description: RunDescription) -> None:
        self.folder = RunFolder(folder)
        self.uri = uri
        self.description = description
        self.position = 0
        self.link: str | None = None

    def send_metrics(self) -> int:
        """Send what was logged since; returns how many values that were."""
        if self.link is None:
            self._open()
        if not self.folder.metrics.exists():
            return 0
        sent = 0
        batch: list[MetricRecord] = []
        size = 0
        for record in read_metrics(self.folder.metrics, self.position):
            if size + len(record.metrics) > METRICS_PER_BATCH:
                sent += self._send(batch)
                batch, size = [], 0
            batch.append(record)
            size += len(record.metrics)
        return sent + self._send(batch)

    def close(self) -> bool:
        """Log how the run ended, its summary and its artifacts; returns False where that was there already.

        A run that is still going is left alone.
        """
        if self.link is None:
            self._open()
        status = read_status(self.folder.path)
        if status is None or status.is_going():
            return False
        ended = status.ended or status.updated
        client, run_id = self._client, self._run_id
        if client.get_run(run_id).data.tags.get(DELIVERED_TAG) == ended.isoformat():
            return False
        # Still "running" and yet not going: killed outright, with nobody left to say so.
        killed = status.state is RunState.running
        # The status before the artifacts: it is small, and must not depend on whether a picture could be stored.
        client.set_terminated(run_id, "KILLED" if killed else MLFLOW_STATUS[status.state], _milliseconds(ended))
        client.set_tag(run_id, "fsae.state", "killed" if killed else status.state.value)
        client.set_tag(run_id, "mlflow.note.content", self._summary(status))
        folder = self.folder
        for file in (folder.config, folder.overrides, folder.results, folder.status, folder.log):
            if file.exists():
                client.log_artifact(run_id, str(file))
        for directory in (folder.plots, folder.sae):
            if directory.exists():
                client.log_artifacts(run_id, str(directory), artifact_path=directory.name)
        client.set_tag(run_id, DELIVERED_TAG, ended.isoformat())
        return True

    def unsent(self) -> int:
        """How many values of `metrics.jsonl` are not known to be in MLflow."""
        if not self.folder.metrics.exists():
            return 0
        return sum(len(record.metrics) for record in read_metrics(self.folder.metrics, self.position))

    def _open(self) -> None:
        from mlflow.entities import Param, RunTag

        client = open_store(self.uri)
        description = self.description
        experiment_id = find_or_create_experiment(client, description.experiment, self.uri, Path(description.outputs))
        status = read_status(self.folder.path)
        # Two processes may upload one folder, the run itself and `fsae.sync`: they must not make two runs of it.
        with FileLock(self.folder.path / ".upload.lock"):
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
        # What MLflow's record of a run shows of a metric is its value at the highest step.
        self._stored_step = {metric.key: metric.step for metric in run.to_proto().data.metrics}
        self.link = run_link(self.uri, experiment_id, run_id)

    def _send(self, records: list[MetricRecord]) -> int:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, record.time_ms, record.step)
            for record in records
            for name, value in record.metrics.items()
            if record.step > self._stored_step.get(name, -1)
        ]
        # A single record can hold more than one batch.
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + METRICS_PER_BATCH])
        if records:
            self.position = records[-1].end
        return len(metrics)

    def _summary(self, status: RunStatus | None) -> str:
        lines = [f"Folder: `{self.folder.path.absolute()}`"]
        if status and status.failure:
            lines.append(f"**{status.state.value}**: {status.failure.kind}: {status.failure.message[:1000]}")
        if self.folder.results.exists():
            results = json.loads(self.folder.results.read_text(encoding="utf-8"))
            numbers = {name: value for name, value in results.items() if isinstance(value, int | float)}
            rows = [f"| {name} | {value:.4g} |" for name, value in numbers.items()]
            lines.append("\n".join(["| held out | |", "| --- | --- |", *rows]))
        return "\n\n".join(lines)[:TAG_LENGTH]


def find_or_create_experiment(client: Any, name: str, uri: str, outputs: Path) -> str:
    """The experiment's id; several processes may try at once."""
    from mlflow.exceptions import MlflowException

    root = artifact_root(uri, outputs)
    if experiment := client.get_experiment_by_name(name):
        return experiment.experiment_id
    try:
        return client.create_experiment(
            name,
            artifact_location=root.as_uri() if root else None,
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
    except MlflowException:
        # Another run may have made it in between.
        if experiment := client.get_experiment_by_name(name):
            return experiment.experiment_id
        raise


def sync_command(folder: Path) -> str:
    """What sends a folder to MLflow afterwards."""
    return shell_command("sync", folder)


def first_line(error: Exception) -> str:
    """What an error of MLflow's says in short: its own text can run over pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)

"""A sweep's summary run in MLflow: it is no job, counts the jobs by state and holds the report.

The jobs' runs are not its children: MLflow's table would hide children and its charts would omit them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fsae.tracking.mlflow_upload import (
    TAG_LENGTH,
    DeletedExperimentError,
    MlflowUpload,
    find_or_create_experiment,
    read_description,
    reason_of,
)
from fsae.tracking.server import as_literal, compare_link, jobs_filter, open_client, shared_view_key, table_link

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Held-out numbers in the table of a sweep's jobs, in this order.
COLUMNS = (
    "fvu", "l0", "ce_recovered_zero", "kl", "dead_share", "fisher_ratio", "code_correlation_excess",
    "decoder_max_cosine", "mcc", "pw_mcc", "description_length",
)  # fmt: skip
COLUMN_WIDTH = 150  # pixels; MLflow's own 100 cut the names off
KIND_TAG, SWEEP_TAG = "fsae.kind", "fsae.sweep"


class SweepRun:
    """The summary run of a sweep; opening it also prepares the database for many jobs at once.

    Every method may raise ConnectionError, if MLflow does not accept the request in time, or DeletedExperimentError;
    any method may be called again later.

    Args:
        uri: the tracking server or database, with its password.
        outputs: the outputs folder, which holds artifacts unless a server does.
        experiment: MLflow's experiment.
        sweep: the tag that the sweep's runs share.
        varied: the settings that differ between its jobs, which are columns of its table.
        seconds: time limit of one call.
    """

    def __init__(
        self, *, uri: str, outputs: Path, experiment: str, sweep: str, varied: Sequence[str] = (), seconds: float
    ) -> None:
        self._varied = varied
        self._uri = uri
        self._outputs = outputs
        self._experiment = experiment
        self._sweep = sweep
        self._seconds = seconds
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._run_id = ""

    def open(self) -> None:
        """Find the run or create it."""
        self._in_time(self._open)

    def _open(self) -> MlflowClient:
        client = open_client(self._uri)
        self._experiment_id = find_or_create_experiment(client, self._experiment, self._uri, self._outputs)
        found = client.search_runs(
            [self._experiment_id],
            f"tags.`{KIND_TAG}` = 'sweep' and tags.`{SWEEP_TAG}` = {as_literal(self._sweep)}",
            max_results=1,
        )
        tags = {KIND_TAG: "sweep", SWEEP_TAG: self._sweep}
        run = found[0] if found else client.create_run(self._experiment_id, run_name=f"sweep {self._sweep}", tags=tags)
        self._run_id = run.info.run_id
        client.update_run(self._run_id, status="RUNNING")
        self._choose_columns(client)
        self._client = client
        return client

    def _choose_columns(self, client: MlflowClient) -> None:
        """Store the view of the jobs' table in the experiment: the varied settings, then the main numbers."""
        from mlflow.exceptions import MlflowException

        columns = [f"params.`{key}`" for key in self._varied]
        columns += [f"metrics.`eval/{name}`" for name in COLUMNS]
        view = {
            "searchFilter": jobs_filter(self._sweep),
            "startTime": "ALL",
            "orderByKey": "metrics.`eval/fvu`",
            "orderByAsc": True,
            "selectedColumns": columns,
            "columnOrder": columns,
            "columnWidths": dict.fromkeys(columns, COLUMN_WIDTH),
        }
        name = f"mlflow.sharedViewState.{shared_view_key(self._sweep)}"
        try:
            client.set_experiment_tag(self._experiment_id, name, json.dumps(view))
        except MlflowException:
            # A database refuses two processes that make the tag at the same time; now it is there to be changed.
            client.set_experiment_tag(self._experiment_id, name, json.dumps(view))

    def deliver(self, folders: Sequence[Path]) -> None:
        """Send what MLflow lacks of the jobs in these folders, such as the end of a killed job."""

        def send() -> None:
            for folder in folders:
                upload = MlflowUpload(folder, self._uri, read_description(folder))
                upload.send_metrics()
                upload.close()

        self._in_time(send, self._seconds + len(folders))

    def close(self, *, finished: bool, counts: Mapping[str, int], note: str, report: Path | None) -> None:
        """Record how the sweep ended.

        Args:
            finished: whether every job finished.
            counts: number of jobs by state.
            note: Markdown text for the run's page.
            report: the report's folder.
        """

        def end() -> None:
            client = self._client or self._open()
            run_id = self._run_id
            for state, count in counts.items():
                client.log_metric(run_id, f"jobs/{state}", count)
            client.set_tag(run_id, "mlflow.note.content", _cut(note))
            if report is not None:
                client.log_artifacts(run_id, str(report), artifact_path="report")
            client.set_terminated(run_id, "FINISHED" if finished else "FAILED")

        self._in_time(end)

    @property
    def compare_link(self) -> str | None:
        """The address of the charts of the sweep's runs, once the run was opened."""
        return compare_link(self._uri, self._experiment_id, self._sweep) if self._experiment_id else None

    @property
    def table_link(self) -> str | None:
        """The address of the table of the sweep's runs, once the run was opened."""
        return table_link(self._uri, self._experiment_id, self._sweep) if self._experiment_id else None

    def _in_time(self, action: Callable[[], object], seconds: float | None = None) -> None:
        failures: list[Exception] = []

        def attempt() -> None:
            try:
                action()
            except Exception as error:
                failures.append(error)

        # MLflow retries an unreachable database for minutes, without an option to stop: the thread is abandoned.
        thread = threading.Thread(target=attempt, name="sweep's run in MLflow", daemon=True)
        thread.start()
        seconds = self._seconds if seconds is None else seconds
        thread.join(seconds)
        if thread.is_alive():
            raise ConnectionError(f"no answer within {seconds:.0f} s")
        if failures and isinstance(failures[0], DeletedExperimentError):
            raise failures[0]
        if failures:
            raise ConnectionError(reason_of(failures[0])) from failures[0]


def _cut(note: str) -> str:
    """Return as many whole lines of a note as MLflow accepts."""
    if len(note) <= TAG_LENGTH:
        return note
    end = "\n\nMore is in the report, among the artifacts."
    return note[: TAG_LENGTH - len(end)].rpartition("\n")[0] + end

"""A sweep's summary run in MLflow."""

import sqlite3
import threading
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from fsae.tracking.sweep_summary import SweepRun


def sweep_run(uri: str, outputs: Path, seconds: float = 60) -> SweepRun:
    return SweepRun(uri=uri, outputs=outputs, experiment="fsae", sweep="day/time", seconds=seconds)


def test_a_resumed_sweep_keeps_its_summary_run(sqlite_uri: str, tmp_path: Path):
    from mlflow import MlflowClient

    report = tmp_path / "report"
    report.mkdir()
    (report / "report.html").write_text("<html>")
    first = sweep_run(sqlite_uri, tmp_path)
    assert first.compare_link is None
    first.open()
    first.close(finished=False, counts={"finished": 1, "failed": 1}, note="one failed", report=report)
    second = sweep_run(sqlite_uri, tmp_path)
    second.open()
    client = MlflowClient(sqlite_uri)
    (run,) = client.search_runs(["1"], "tags.`fsae.sweep` = 'day/time'")
    assert run.info.status == "RUNNING"
    second.close(finished=True, counts={"finished": 2, "failed": 0}, note="all finished", report=None)
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "sweep day/time"
    assert run.data.tags["fsae.kind"] == "sweep"
    assert run.data.tags["mlflow.note.content"] == "all finished"
    assert run.data.metrics == {"jobs/finished": 2, "jobs/failed": 0}
    assert [each.path for each in client.list_artifacts(run.info.run_id, "report")] == ["report/report.html"]
    assert second.compare_link == (
        "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&searchFilter=tags.%60fsae.sweep%60"
        "%20%3D%20%27day%2Ftime%27%20and%20tags.%60fsae.kind%60%20%21%3D%20%27sweep%27&startTime=ALL"
        "&compareRunsMode=CHART"
    )


def test_many_jobs_find_the_database_ready(tmp_path: Path):
    """Threads replace processes: the race is in the database, which is created once."""
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    runs = [sweep_run(uri, tmp_path) for _ in range(4)]
    failures: list[BaseException] = []

    def open_it(run: SweepRun) -> None:
        try:
            run.open()
        except ConnectionError as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_tag_that_another_process_makes_at_the_same_time_is_changed(tmp_path: Path):
    from mlflow.exceptions import MlflowException

    class Racing:
        """A client whose first tag is refused, as by a database in which another process has just made it."""

        tags: ClassVar[list[str]] = []

        def set_experiment_tag(self, experiment: str, key: str, value: str) -> None:
            self.tags.append(value)
            if len(self.tags) == 1:
                raise MlflowException("UNIQUE constraint failed")

    run = sweep_run(f"sqlite:///{tmp_path / 'new.db'}", tmp_path)
    run._experiment_id = "1"
    run._choose_columns(cast(Any, Racing()))
    assert len(Racing.tags) == 2
    assert Racing.tags[0] == Racing.tags[1]


def test_a_locked_database_is_reported_in_time(sqlite_uri: str, tmp_path: Path):
    holder = sqlite3.connect(sqlite_uri.removeprefix("sqlite:///"))
    holder.execute("BEGIN EXCLUSIVE")
    # MLflow alone would wait for minutes.
    with pytest.raises(ConnectionError, match="no answer within 1 s"):
        sweep_run(sqlite_uri, tmp_path, seconds=1).open()
    holder.rollback()
    holder.close()


def test_a_missing_server_is_reported(tmp_path: Path):
    with pytest.raises(ConnectionError, match=r"Connection refused|Max retries"):
        sweep_run("http://127.0.0.1:1", tmp_path).open()


def test_a_long_note_is_cut_at_the_end_of_a_line(sqlite_uri: str, tmp_path: Path):
    from mlflow import MlflowClient

    run = sweep_run(sqlite_uri, tmp_path)
    run.open()
    run.close(finished=True, counts={}, note="| a row of a table |\n" * 1000, report=None)
    (found,) = MlflowClient(sqlite_uri).search_runs(["1"])
    note = found.data.tags["mlflow.note.content"]
    assert len(note) <= 8000
    assert set(note.splitlines()) == {"| a row of a table |", "", "More is in the report, among the artifacts."}

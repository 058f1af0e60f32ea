import logging
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import call, create_autospec

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from fsae.outputs.metric_log import MetricSink, read_metrics
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import RunState, mark
from fsae.tracking.mlflow_upload import RunDescription, describe_run, sync_command
from fsae.tracking.server import python_command
from fsae.tracking.tracker import Tracker, TrackingSettings
from fsae.tracking.uploader import RESTARTS, Uploader
from tests.tracking.mlflow_server import Server
from tests.tracking.trackers import tracking

Describe = Callable[..., RunDescription]
PAUSE = 0.1


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fsae")


def only_run(uri: str) -> Run:
    (run,) = runs(uri)
    return run


def runs(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def steps(uri: str, name: str) -> list[int]:
    history = [MlflowClient(uri).get_metric_history(run.info.run_id, name) for run in runs(uri)]
    return [metric.step for metrics in history for metric in metrics]


def log_steps(sink: MetricSink, first: int, last: int) -> None:
    """Log ten values per step."""
    for step in range(first, last):
        sink.log({f"train/{n}": step + n / 10 for n in range(10)}, step=step)
        time.sleep(0.001)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_mlflow_only_the_file_is_written(run_folder: Path) -> None:
    with tracking(run_folder, None) as tracker:
        tracker.log({"train/l0": 3.0}, step=7)
        assert tracker.position() == RunFolder(run_folder).metrics.stat().st_size
    assert [path.name for path in run_folder.iterdir()] == ["metrics.jsonl"]


def test_logging_a_value_sends_nothing_and_so_waits_for_nothing(run_folder: Path) -> None:
    uploader = create_autospec(Uploader, instance=True)
    with tracking(run_folder, uploader) as tracker:
        log_steps(tracker, 0, 20)
        tracker.position()
        assert uploader.mock_calls == [call.follow(run_folder)]
    assert uploader.mock_calls == [call.follow(run_folder), call.end(run_folder)]


def test_mlflow_shows_a_run_while_it_is_running_and_closes_it_at_its_end(
    sqlite_uri: str, run_folder: Path, describe: Describe, caplog: pytest.LogCaptureFixture
) -> None:
    describe(sqlite_uri)
    mark(run_folder, RunState.running)
    with Uploader(sqlite_uri, 30.0, PAUSE) as uploader, tracking(run_folder, uploader) as tracker:
        log_steps(tracker, 0, 20)
        wait_for(lambda: len(steps(sqlite_uri, "train/0")) == 20)
        assert only_run(sqlite_uri).info.status == "RUNNING"
        log_steps(tracker, 20, 30)
        mark(run_folder, RunState.finished)
    assert steps(sqlite_uri, "train/9") == list(range(30))
    run = only_run(sqlite_uri)
    assert run.info.status == "FINISHED"
    (record,) = caplog.records
    assert record.getMessage() == (
        f"in MLflow: http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        "?workflowType=machine_learning"
    )


def test_one_process_uploads_many_folders_that_end_at_different_times(
    sqlite_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [tmp_path / "outputs" / "runs" / str(n) for n in range(6)]
    for folder in folders:
        folder.mkdir(parents=True)
        describe_run(
            folder, uri=sqlite_uri, outputs=tmp_path, experiment="fsae", run_name=folder.name, params={}, tags={}
        )
        mark(folder, RunState.running)
    with Uploader(sqlite_uri, 30.0, PAUSE) as uploader:
        children = len(psutil.Process().children())
        trackers = [Tracker(folder, uploader) for folder in folders]
        assert len(psutil.Process().children()) == children
        for tracker in trackers:
            log_steps(tracker, 0, 20)
        mark(folders[2], RunState.failed)
        trackers[2].finish()
        wait_for(lambda: sorted(run.info.status for run in runs(sqlite_uri)) == ["FAILED"] + ["RUNNING"] * 5)
        for folder, tracker in zip(folders, trackers, strict=True):
            if folder is not folders[2]:
                tracker.log({"train/last": 1.0}, 20)
                mark(folder, RunState.finished)
                tracker.finish()
    assert sorted(run.info.status for run in runs(sqlite_uri)) == ["FAILED"] + ["FINISHED"] * 5
    assert sorted(steps(sqlite_uri, "train/3")) == sorted(list(range(20)) * 6)
    assert len(steps(sqlite_uri, "train/last")) == 5
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["in MLflow"] * 6


def test_a_run_that_fails_before_its_first_value_is_in_mlflow(
    sqlite_uri: str, run_folder: Path, describe: Describe
) -> None:
    describe(sqlite_uri)

    def run() -> None:
        with Uploader(sqlite_uri, 30.0, PAUSE) as uploader, tracking(run_folder, uploader):
            try:
                raise ValueError("no text")
            except ValueError:
                mark(run_folder, RunState.failed)
                raise

    with pytest.raises(ValueError, match="no text"):
        run()
    assert only_run(sqlite_uri).info.status == "FAILED"


def test_an_outage_of_the_server_loses_and_doubles_nothing(
    server: Server, run_folder: Path, describe: Describe, caplog: pytest.LogCaptureFixture
) -> None:
    database = f"sqlite:///{server.database}"
    server.start()
    server.wait_until_up()
    describe(server.uri)
    folder = RunFolder(run_folder)
    mark(run_folder, RunState.running)
    with Uploader(server.uri, 30.0, PAUSE) as uploader, tracking(run_folder, uploader) as tracker:
        log_steps(tracker, 0, 300)
        wait_for(lambda: len(steps(database, "train/0")) >= 300)
        server.kill()
        log_steps(tracker, 300, 1200)
        wait_for(lambda: "does not accept" in caplog.text)
        server.start()
        server.wait_until_up()
        log_steps(tracker, 1200, 1500)
        wait_for(lambda: "is back" in caplog.text)
        folder.config.write_text("seed: 3\n")
        mark(run_folder, RunState.finished)

    for n in range(10):
        assert steps(database, f"train/{n}") == list(range(1500))
    assert only_run(database).info.status == "FINISHED"
    run_id = only_run(server.uri).info.run_id
    assert {file.path for file in MlflowClient(server.uri).list_artifacts(run_id)} == {"config.yaml", "status.json"}
    # One line for the outage, one for its end, and one with the run's address.
    went, back, end = caplog.records
    assert went.levelname == "WARNING"
    assert sync_command(run_folder) in went.getMessage()
    assert back.getMessage() == f"MLflow ({server.uri}) is back and up to date"
    assert end.getMessage().startswith(f"in MLflow: {server.uri}/#/experiments/")


def test_a_run_ends_in_time_if_the_server_hangs(
    run_folder: Path, describe: Describe, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        describe(uri)
        mark(run_folder, RunState.running)
        # Nothing else ends the wait: the server never answers.
        with Uploader(uri, 4.0, PAUSE) as uploader, tracking(run_folder, uploader) as tracker:
            log_steps(tracker, 0, 200)
            mark(run_folder, RunState.finished)
    assert len(list(read_metrics(RunFolder(run_folder).metrics))) == 200
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"not in MLflow ({uri}) yet: 2000 values and the artifacts. Nothing is lost; "
        f"send them with: {python_command()} -m fsae.sync '{run_folder}'"
    )


def test_the_last_values_of_a_killed_run_are_uploaded(sqlite_uri: str, run_folder: Path, describe: Describe) -> None:
    describe(sqlite_uri)
    program = f"""
import os, pathlib, signal
from fsae.outputs.status import RunState, mark
from fsae.tracking.tracker import Tracker
from fsae.tracking.uploader import Uploader
folder = pathlib.Path({str(run_folder)!r})
mark(folder, RunState.running)
tracker = Tracker(folder, Uploader({sqlite_uri!r}, 30.0))
for step in range(1000):
    tracker.log({{"train/l0": float(step)}}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    wait_for(lambda: [run.info.status for run in runs(sqlite_uri)] == ["KILLED"])
    assert steps(sqlite_uri, "train/l0") == list(range(1000))


def test_a_locked_database_and_a_resumed_run_double_nothing(
    sqlite_uri: str, run_folder: Path, describe: Describe
) -> None:
    describe(sqlite_uri)
    database = sqlite3.connect(sqlite_uri.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    program = f"""
import pathlib, sys, time
from fsae.outputs.status import RunState, mark
from fsae.tracking.tracker import Tracker
from fsae.tracking.uploader import Uploader
folder = pathlib.Path({str(run_folder)!r})
mark(folder, RunState.running)
tracker = Tracker(folder, Uploader({sqlite_uri!r}, 30.0, {PAUSE}))
for first in (0, 10):
    for step in range(first, first + 10):
        tracker.log({{f"train/{{n}}": step + n / 10 for n in range(10)}}, step)
    print(tracker.position(), flush=True)
    sys.stdin.readline()
time.sleep(100)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdin
        assert run.stdout
        position = int(run.stdout.readline())
        wait_for(lambda: [len(steps(sqlite_uri, f"train/{n}")) for n in range(10)] == [10] * 10)
        database.execute("BEGIN IMMEDIATE")
        run.stdin.write("\n")
        run.stdin.flush()
        run.stdout.readline()
        # The run's uploader waits for the lock.
        time.sleep(1)
        run.kill()
    mark(run_folder, RunState.running)
    with Uploader(sqlite_uri, 30.0, PAUSE) as uploader, tracking(run_folder, uploader, position) as tracker:
        log_steps(tracker, 10, 30)
        # So does this uploader, after it has read what MLflow has.
        time.sleep(3)
        database.execute("ROLLBACK")
        mark(run_folder, RunState.finished)
    database.close()
    for n in range(10):
        assert steps(sqlite_uri, f"train/{n}") == list(range(30))
    assert only_run(sqlite_uri).info.status == "FINISHED"


def test_a_runs_end_waits_for_the_server(
    server: Server, run_folder: Path, describe: Describe, caplog: pytest.LogCaptureFixture
) -> None:
    describe(server.uri)
    mark(run_folder, RunState.running)
    with Uploader(server.uri, 60.0, PAUSE) as uploader, tracking(run_folder, uploader) as tracker:
        log_steps(tracker, 0, 10)
        mark(run_folder, RunState.finished)
        # The server is up some seconds after the first attempt to send the run's end.
        server.start()
    assert steps(server.uri, "train/0") == list(range(10))
    assert only_run(server.uri).info.status == "FINISHED"


def test_a_killed_uploader_is_reported_at_once_and_restarted(
    sqlite_uri: str, run_folder: Path, describe: Describe, caplog: pytest.LogCaptureFixture
) -> None:
    describe(sqlite_uri)
    mark(run_folder, RunState.running)
    with Uploader(sqlite_uri, 30.0, PAUSE) as uploader, tracking(run_folder, uploader) as tracker:
        log_steps(tracker, 0, 10)
        for times in range(1, 3):
            uploader._process.kill()
            wait_for(lambda: caplog.text.count("exit status -9): it is restarted") == times)  # noqa: B023
        log_steps(tracker, 10, 20)
        mark(run_folder, RunState.finished)
    assert steps(sqlite_uri, "train/0") == list(range(20))
    assert "in MLflow: http" in caplog.text


def test_an_uploader_that_keeps_dying_is_not_restarted_and_reported(
    run_folder: Path, describe: Describe, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe("http://127.0.0.1:9")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    # Its end waits for no process: the wait would last longer than a test may.
    with Uploader("http://127.0.0.1:9", 1000.0, PAUSE) as uploader, tracking(run_folder, uploader) as tracker:
        wait_for(lambda: "is not restarted" in caplog.text)
        log_steps(tracker, 0, 10)
    assert caplog.text.count("it is restarted") == RESTARTS
    assert "not in MLflow (http://127.0.0.1:9) yet: 100 values" in caplog.text


def test_the_last_line_asks_to_restore_a_deleted_experiment(
    sqlite_uri: str, run_folder: Path, describe: Describe, caplog: pytest.LogCaptureFixture
) -> None:
    description = describe(sqlite_uri)
    client = MlflowClient(sqlite_uri)
    client.delete_experiment(client.create_experiment(description.experiment))
    with Uploader(sqlite_uri, 30.0, PAUSE) as uploader, tracking(run_folder, uploader) as tracker:
        log_steps(tracker, 0, 1)
        wait_for(lambda: "was deleted in MLflow" in caplog.text)
    last = caplog.messages[-1]
    assert last.startswith(f"not in MLflow ({sqlite_uri}) yet: 10 values")
    assert "was deleted in MLflow; restore it with `" in last
    assert f"Restore it first, then send them with: {python_command()} -m fsae.sync '{run_folder}'" in last


def test_a_new_run_drops_the_values_of_the_earlier_run(run_folder: Path) -> None:
    with tracking(run_folder, None) as tracker:
        log_steps(tracker, 0, 5)
    with tracking(run_folder, None) as tracker:
        log_steps(tracker, 0, 5)
    assert len(list(read_metrics(RunFolder(run_folder).dropped))) == 5
    with tracking(run_folder, None, fresh=True) as tracker:
        assert tracker.position() == 0
    assert not RunFolder(run_folder).dropped.exists()


def test_a_resumed_tracker_continues_at_the_checkpoints_position(
    sqlite_uri: str, run_folder: Path, describe: Describe
) -> None:
    describe(sqlite_uri)
    mark(run_folder, RunState.running)
    with Uploader(sqlite_uri, 30.0, PAUSE) as uploader, tracking(run_folder, uploader) as tracker:
        log_steps(tracker, 0, 10)
        position = tracker.position()
        log_steps(tracker, 10, 15)
        mark(run_folder, RunState.interrupted)
    mark(run_folder, RunState.running)
    with Uploader(sqlite_uri, 30.0, PAUSE) as uploader, tracking(run_folder, uploader, position) as tracker:
        log_steps(tracker, 10, 20)
        mark(run_folder, RunState.finished)
    assert steps(sqlite_uri, "train/3") == list(range(20))
    assert [record.step for record in read_metrics(RunFolder(run_folder).metrics)] == list(range(20))
    assert only_run(sqlite_uri).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"uri": "file:///tmp/mlruns"}, r"tracking\.uri=.*set a server"),
        ({"experiment": ""}, r"tracking\.experiment is empty"),
        ({"flush_seconds": -1.0}, r"tracking\.flush_seconds is -1; it must be at least 0"),
        ({"flush_seconds": float("nan")}, r"tracking\.flush_seconds is nan"),
    ],
)
def test_tracking_settings_are_refused_by_name(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrackingSettings(**wrong)

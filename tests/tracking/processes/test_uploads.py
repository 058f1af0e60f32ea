"""The process that uploads runs, with real servers, databases and kills."""

import logging
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from fsae.commands.sync import main
from fsae.outputs.metric_log import read_metrics
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import RunState, mark
from fsae.tracking.mlflow_upload import describe_run, sync_command
from fsae.tracking.server import open_client, python_command
from fsae.tracking.tracker import Tracker
from fsae.tracking.uploader import Uploader
from tests.tracking.mlflow_runs import count, only_run, runs, states, steps
from tests.tracking.mlflow_server import Server
from tests.tracking.trackers import PAUSE, Describe, log_steps, tracking, wait_for


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fsae")


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
        wait_for(lambda: states(sqlite_uri) == ["FAILED"] + ["RUNNING"] * 5)
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
        wait_for(lambda: count(database, "train/0") >= 300)
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
    wait_for(lambda: states(sqlite_uri) == ["KILLED"])
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
        wait_for(lambda: [count(sqlite_uri, f"train/{n}") for n in range(10)] == [10] * 10)
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


def test_sync_uploads_a_run_once_its_server_is_reachable(
    server: Server, run_folder: Path, describe: Describe, capfd: pytest.CaptureFixture[str]
) -> None:
    describe(server.uri)
    mark(run_folder, RunState.running)
    with Uploader(server.uri, 5.0) as uploader, tracking(run_folder, uploader) as tracker:
        for step in range(1500):
            tracker.log({"train/l0": 64.0 + step, "train/mse": 0.5}, step=step)
        mark(run_folder, RunState.finished)

    assert main([str(run_folder)]) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"{run_folder}: MLflow ({server.uri}) does not accept it: ")
    assert "The folder keeps 3,000 values; try again later" in printed.err

    server.start()
    server.wait_until_up()
    assert main([str(run_folder)]) == 0
    assert f"{run_folder}: 3,000 values sent, its end and artifacts sent: {server.uri}/#/" in capfd.readouterr().out
    assert steps(server.uri, "train/l0") == list(range(1500))

    assert main([str(run_folder)]) == 0
    printed = capfd.readouterr().out
    assert "every value was already stored, its end and artifacts were already stored" in printed
    assert f"compare: {server.uri}\n" in printed
    assert steps(server.uri, "train/l0") == list(range(1500))


def test_four_processes_may_create_one_database_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/deep/mlflow.db"
    program = (
        f"import sys; from fsae.tracking.server import open_client\nopen_client({uri!r}).create_experiment(sys.argv[1])"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, f"experiment {n}"], stderr=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    output = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, output
    names = {experiment.name for experiment in open_client(uri).search_experiments()}
    assert names == {"Default", *(f"experiment {n}" for n in range(4))}
    # No half-made database, and no ./mlruns in the working directory.
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "mlflow.db", "mlflow.db.lock"]

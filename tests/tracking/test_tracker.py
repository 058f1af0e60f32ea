import json
import logging
import sys
import time
from pathlib import Path
from unittest.mock import call, create_autospec

import pytest

from fsae.outputs.metric_log import read_metrics
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import RunState, mark
from fsae.tracking.server import python_command
from fsae.tracking.tracker import TrackingSettings
from fsae.tracking.uploader import RESTARTS, Uploader
from tests.tracking.mlflow_runs import count, only_run, steps
from tests.tracking.trackers import PAUSE, Describe, log_steps, tracking, wait_for


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fsae")


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
        wait_for(lambda: count(sqlite_uri, "train/0") == 20)
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


def replace_the_process(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Let a shell script take the place of the process that uploads."""
    program = folder / "uploads"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_a_run_ends_in_time_if_nothing_is_uploaded(
    run_folder: Path, describe: Describe, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    describe("http://127.0.0.1:9")
    replace_the_process(monkeypatch, tmp_path, "exec sleep 200")
    began = time.monotonic()
    with Uploader("http://127.0.0.1:9", 0.3, PAUSE) as uploader, tracking(run_folder, uploader) as tracker:
        log_steps(tracker, 0, 10)
    assert time.monotonic() - began < 60
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "not in MLflow (http://127.0.0.1:9) yet: 100 values and the artifacts. Nothing is lost; "
        f"send them with: {python_command()} -m fsae.sync '{run_folder}'"
    )


def test_a_process_that_ended_is_started_again_with_all_its_folders(
    run_folder: Path, describe: Describe, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    describe("http://127.0.0.1:9")
    told = tmp_path / "told"
    # The first one ends after its first command, the second one after the last.
    ended = f"[ -e '{told}.first' ] || {{ touch '{told}.first'; exit 3; }}"
    script = f"echo \"$word\" >> '{told}'; {ended}; case $word in *finish*) exit 0 ;; esac"
    replace_the_process(monkeypatch, tmp_path, f"while read word; do {script}; done")
    with Uploader("http://127.0.0.1:9", 30.0, PAUSE) as uploader, tracking(run_folder, uploader):
        wait_for(lambda: "ended (exit status 3): it is restarted" in caplog.text)
    follow, again, *rest = told.read_text().splitlines()
    assert follow == again
    assert [word.partition(",")[0] for word in (follow, *rest)] == ['["follow"', '["end"', '["finish"']


def test_the_last_line_asks_to_restore_a_deleted_experiment(
    run_folder: Path, describe: Describe, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    describe("http://127.0.0.1:9")
    report = {
        "folder": str(run_folder), "level": logging.WARNING, "message": "gone", "position": 0, "link": None,
        "obstacle": "it was deleted", "arrived": False, "delivered": False,
    }  # fmt: skip
    (tmp_path / "report").write_text(json.dumps(report))
    replace_the_process(monkeypatch, tmp_path, f"read word; cat '{tmp_path / 'report'}'; echo; exec sleep 200")
    with Uploader("http://127.0.0.1:9", 0.3, PAUSE) as uploader, tracking(run_folder, uploader) as tracker:
        log_steps(tracker, 0, 1)
        wait_for(lambda: "gone" in caplog.text)
    assert caplog.messages[-1] == (
        "not in MLflow (http://127.0.0.1:9) yet: 10 values and the artifacts. Nothing is lost; it was deleted. "
        f"Restore it first, then send them with: {python_command()} -m fsae.sync '{run_folder}'"
    )


def test_a_new_run_drops_the_values_of_the_earlier_run(run_folder: Path) -> None:
    with tracking(run_folder, None) as tracker:
        log_steps(tracker, 0, 5)
    with tracking(run_folder, None) as tracker:
        log_steps(tracker, 0, 5)
    assert len(list(read_metrics(RunFolder(run_folder).dropped))) == 5
    with tracking(run_folder, None, fresh=True) as tracker:
        assert tracker.position() == 0
    assert not RunFolder(run_folder).dropped.exists()


def test_a_resumed_tracker_continues_at_the_checkpoints_position(run_folder: Path) -> None:
    with tracking(run_folder, None) as tracker:
        log_steps(tracker, 0, 10)
        position = tracker.position()
        log_steps(tracker, 10, 15)
    with tracking(run_folder, None, position) as tracker:
        log_steps(tracker, 10, 20)
    assert [record.step for record in read_metrics(RunFolder(run_folder).metrics)] == list(range(20))


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

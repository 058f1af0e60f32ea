import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import Failure, RunState, mark, read_status


def test_mark_records_a_run_from_start_to_failure(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    started = mark(tmp_path, RunState.running)
    assert started == read_status(tmp_path)
    assert started.ended is None
    assert started.pid == os.getpid()
    assert started.started.tzinfo is UTC
    ended = mark(tmp_path, RunState.failed, Failure(kind="ValueError", message="k=9 above d_sae=8"))
    assert ended == read_status(tmp_path)
    assert ended.ended == ended.updated
    assert ended.started == started.started <= ended.updated <= datetime.now(UTC)
    # People and other programs read it, so it has plain words and ISO times.
    written = json.loads(RunFolder(tmp_path).status.read_text())
    assert written["state"] == "failed"
    assert written["failure"] == {"kind": "ValueError", "message": "k=9 above d_sae=8"}
    assert written["ended"].endswith("+00:00")


def test_a_resumed_run_keeps_its_first_start_and_drops_its_end(tmp_path: Path) -> None:
    first = mark(tmp_path, RunState.running)
    mark(tmp_path, RunState.interrupted)
    resumed = mark(tmp_path, RunState.running)
    assert (resumed.started, resumed.ended) == (first.started, None)


def test_a_run_is_not_alive_without_its_process(tmp_path: Path) -> None:
    assert mark(tmp_path, RunState.running).is_alive()
    assert not mark(tmp_path, RunState.finished).is_alive()
    program = (
        "import os, pathlib, signal; from fsae.outputs.status import RunState, mark\n"
        f"mark(pathlib.Path({str(tmp_path)!r}), RunState.running); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    status = read_status(tmp_path)
    assert status is not None
    assert status.state is RunState.running
    assert not status.is_alive()


def test_a_run_is_not_alive_if_another_process_has_its_number(tmp_path: Path) -> None:
    mark(tmp_path, RunState.running)
    path = RunFolder(tmp_path).status
    # This process started later, as after a restart of the container.
    path.write_text(json.dumps(json.loads(path.read_text()) | {"updated": "2020-01-02T03:04:05+00:00"}))
    status = read_status(tmp_path)
    assert status is not None
    assert not status.is_alive()


def test_a_run_on_another_host_counts_as_alive(tmp_path: Path) -> None:
    mark(tmp_path, RunState.running)
    path = RunFolder(tmp_path).status
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere", "pid": 999_999_999}))
    status = read_status(tmp_path)
    assert status is not None
    assert status.is_alive()


@pytest.mark.parametrize("text", ["", "{}", '{"state": "asleep"}', "[1]"])
def test_the_error_names_a_damaged_status(tmp_path: Path, text: str) -> None:
    RunFolder(tmp_path).status.write_text(text)
    with pytest.raises(ValueError, match=r"status\.json is not a run's status"):
        read_status(tmp_path)

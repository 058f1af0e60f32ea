"""The jobs in a sweep's folder."""

import json
import os
import stat
from pathlib import Path

import pytest

from fsae.outputs.slurm_queue import note_slurm_job
from fsae.outputs.status import RunState, mark
from fsae.outputs.sweep_folder import JobState, Sweep, lock, read_sweep, run_name_and_tags


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    sweep = Sweep(
        folder=tmp_path,
        tag="day/time",
        started="2026-01-02T03:04:05+00:00",
        command=["-m", "arch=topk,gated"],
        working_directory=str(tmp_path),
        outputs=str(tmp_path),
        config_dirs=[],
        hydra_overrides=[],
        constant=["seed=1"],
        varied=["arch"],
        jobs=[["arch=topk", "seed=1"], ["arch=gated", "seed=1"]],
    )
    sweep.write()
    return sweep


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A squeue that prints this file."""
    answer = tmp_path / "queue"
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {answer}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return answer


def test_read_sweep_returns_the_written_sweep(sweep: Sweep):
    assert read_sweep(sweep.folder) == sweep


def test_a_job_is_named_after_the_overrides_that_distinguish_it(sweep: Sweep):
    assert [job.name for job in sweep.all_jobs()] == ["arch=topk", "arch=gated"]
    folder = sweep.folder / "1"
    tags = {"fsae.sweep": "day/time", "fsae.sweep_job": "1"}
    for named in (False, True):
        name = "arch=gated,penalty=fisher"
        assert run_name_and_tags(folder, ["arch=gated", "seed=1"], "fisher", named) == (name, tags)


def test_a_run_that_the_user_named_is_named_after_its_penalty_too(sweep: Sweep):
    alone = sweep.folder / "runs" / "alone-3a"
    assert run_name_and_tags(alone, ["arch=gated"], "fisher", False) == ("alone-3a", {})
    assert run_name_and_tags(alone, ["arch=gated"], "fisher", True) == ("alone-3a,penalty=fisher", {})


def test_jobs_chosen_by_the_sweeper_are_found_by_their_folders(sweep: Sweep):
    for job in ("0", "10", "2", "report"):
        (sweep.folder / job).mkdir()
    (sweep.folder / "2" / "overrides.yaml").write_text('- "arch=topk"\n- "site.layer=\\"1\\""\n')
    jobs = Sweep(**{**vars(sweep), "jobs": None}).all_jobs()
    assert [job.folder.name for job in jobs] == ["0", "2", "10"]
    assert jobs[1].overrides == ["arch=topk", 'site.layer="1"']


@pytest.mark.parametrize(
    "state", [RunState.finished, RunState.failed, RunState.refused, RunState.interrupted], ids=lambda state: state.name
)
def test_an_ended_jobs_state_comes_from_its_status(state: RunState, sweep: Sweep):
    job = sweep.all_jobs()[0]
    assert job.state() is JobState.not_started
    job.folder.mkdir()
    mark(job.folder, state)
    assert job.state() is JobState[state.name]


def test_a_running_job_without_its_process_is_killed(sweep: Sweep):
    job = sweep.all_jobs()[0]
    job.folder.mkdir()
    mark(job.folder, RunState.running)
    assert job.state() is JobState.running
    status = json.loads((job.folder / "status.json").read_text())
    (job.folder / "status.json").write_text(json.dumps(status | {"pid": 2**22 + 1}))
    assert job.state() is JobState.killed


@pytest.mark.parametrize(
    ("written", "queued", "state"),
    [
        (None, "12_0 PENDING", JobState.waiting),
        (None, "12_1 PENDING", JobState.not_started),
        # On another host, whose processes only the queue knows.
        (RunState.running, "12_0 RUNNING", JobState.running),
        (RunState.running, "", JobState.killed),
        # Between two attempts.
        (RunState.interrupted, "12_0 PENDING", JobState.waiting),
        (RunState.interrupted, "", JobState.interrupted),
        # Relaunched after a failure.
        (RunState.failed, "12_0 PENDING", JobState.waiting),
        (RunState.failed, "", JobState.failed),
        (RunState.finished, "12_0 COMPLETING", JobState.finished),
    ],
)
def test_slurms_queue_decides_whether_a_job_is_active(
    written: RunState | None, queued: str, state: JobState, sweep: Sweep, queue: Path
):
    job = sweep.all_jobs()[0]
    note_slurm_job(job.folder, "12_0")
    if written:
        mark(job.folder, written)
        status = json.loads((job.folder / "status.json").read_text())
        (job.folder / "status.json").write_text(json.dumps(status | {"host": "another"}))
    queue.write_text(queued + "\n")
    assert job.state() is state


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a sweep's folder: it holds no sweep.json"),
        ('{"format": 1, "tag": ', "does not describe a sweep"),
        ('{"format": 1}', "does not describe a sweep"),
        ('{"format": 99}', "is of format 99, this version of fsae reads 1"),
    ],
)
def test_read_sweep_refuses_what_is_no_sweep(content: str | None, message: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_sweep(tmp_path)


def test_only_one_process_may_launch_a_sweep(tmp_path: Path):
    held = lock(tmp_path)
    with pytest.raises(ValueError, match="another process is launching the sweep"):
        lock(tmp_path)
    held.release()
    lock(tmp_path).release()

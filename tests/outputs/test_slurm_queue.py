"""Slurm's answers about ended jobs, from commands that stand in for those of Slurm."""

from pathlib import Path

import pytest

from fsae.outputs.slurm_queue import end_state


@pytest.mark.parametrize(
    ("scontrol", "sacct", "state"),
    [
        ("JobId=8 ArrayJobId=7 JobName=fsae JobState=OUT_OF_MEMORY Reason=None", "", "OUT_OF_MEMORY"),
        ("Job 7_1 not found", "CANCELLED by 1000\n", "CANCELLED"),
        # A part of an array that was cancelled before it started, on a cluster without accounting.
        ("Job 7_1 not found", "", ""),
        ("", "", ""),
    ],
)
def test_the_state_of_an_ended_job(
    scontrol: str, sacct: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, answer in (("scontrol", scontrol), ("sacct", sacct)):
        (tmp_path / name).write_text(f"#!/bin/sh\nprintf '%s' '{answer}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert end_state("7_1") == state


def test_without_slurm_the_state_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert end_state("7_1") == ""

import subprocess
from pathlib import Path

import pytest

from fsae.tracking import tags
from fsae.tracking.tags import git_tags, run_tags, scheduler_tags


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def untracked_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The code as if installed into an environment, outside any repository, with an empty working directory."""
    installed = tmp_path / "site-packages"
    installed.mkdir()
    monkeypatch.setattr(tags, "__file__", str(installed / "tags.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def test_git_tags_describe_the_working_directory(untracked_code: Path) -> None:
    assert git_tags() == {}
    git("init")
    assert git_tags() == {}
    (untracked_code / "a.txt").write_text("a")
    git("add", "a.txt")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert git_tags() == {"mlflow.source.git.commit": commit, "fsae.git_dirty": "false"}
    (untracked_code / "a.txt").write_text("b")
    assert git_tags() == {"mlflow.source.git.commit": commit, "fsae.git_dirty": "true"}


def test_the_codes_own_repository_takes_precedence(
    untracked_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site-packages" / "tags.py").write_text("")
    monkeypatch.chdir(tmp_path / "site-packages")
    git("init")
    git("add", "tags.py")
    git("commit", "-m", "the code")
    commit = git("rev-parse", "HEAD")
    monkeypatch.chdir(untracked_code)
    assert git_tags()["mlflow.source.git.commit"] == commit


def test_git_tags_are_empty_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_tags() == {}


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({"SLURM_JOB_ID": "12"}, "slurm 12"),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"}, "slurm 12_2"),
        ({"PBS_JOBID": "9.host"}, "pbs 9.host"),
        ({"LSB_JOBID": "5"}, "lsf 5"),
    ],
)
def test_scheduler_tags_name_the_job(environment: dict[str, str], job: str) -> None:
    assert scheduler_tags(environment) == {"fsae.job": job}
    assert scheduler_tags({}) == {}


def test_a_runs_tags_name_its_command_and_machine() -> None:
    found = run_tags(["arch=gated", "seed=3"])
    assert found["fsae.overrides"] == "arch=gated seed=3"
    assert found["mlflow.source.name"] == "python -m fsae.run arch=gated seed=3"
    assert {"fsae.host", "fsae.platform", "fsae.torch", "fsae.version"} <= found.keys()
    assert all(isinstance(value, str) for value in found.values())

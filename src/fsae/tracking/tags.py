"""Tags that record a run's origin: code, command, machine and job. MLflow's table can be filtered by them."""

import os
import platform
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DIRTY_TAG = "fsae.git_dirty"


def run_tags(overrides: Sequence[str]) -> dict[str, str]:
    """Return the tags of a run that this process starts with these overrides; unknown values are omitted."""
    return {
        "mlflow.source.name": shlex.join(["python", "-m", "fsae.run", *overrides]),
        "mlflow.source.type": "LOCAL",
        "fsae.overrides": " ".join(overrides),
        **_versions("fsae", "torch"),
        "fsae.host": socket.gethostname(),
        "fsae.platform": platform.platform(),
        **git_tags(),
        **scheduler_tags(os.environ),
    }


def _versions(*packages: str) -> dict[str, str]:
    """Return tags with the versions of installed packages; fsae has none if it runs from a bare source tree."""
    tags = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            tags["fsae.version" if package == "fsae" else f"fsae.{package}"] = version(package)
    return tags


def git_tags() -> dict[str, str]:
    """Return commit and dirty flag of the repository that tracks this code, else of the working directory's, if any."""
    here = Path(__file__)
    # Installed into an environment, the code may lie inside a repository that does not track it.
    own = _git(here.parent, "ls-files", "--error-unmatch", here.name) is not None
    repository = here.parent if own else Path.cwd()
    commit = _git(repository, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git(repository, "status", "--porcelain")
    # MLflow shows its own tag as the run's source version.
    return {"mlflow.source.git.commit": commit, DIRTY_TAG: str(bool(changes)).lower()}


def scheduler_tags(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the tag of the cluster job, if any: Slurm (array jobs as ARRAY_TASK, as Slurm writes them), PBS or LSF."""
    if "SLURM_JOB_ID" in environment:
        array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
        return {"fsae.job": f"slurm {array}_{task}" if array and task else f"slurm {environment['SLURM_JOB_ID']}"}
    for scheduler, variable in (("pbs", "PBS_JOBID"), ("lsf", "LSB_JOBID")):
        if variable in environment:
            return {"fsae.job": f"{scheduler} {environment[variable]}"}
    return {}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

"""A sweep's folder: `sweep.json` says which jobs there are, and each job's own folder what became of it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from filelock import FileLock, Timeout

from fsae.files import write_json
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.slurm_queue import is_queued
from fsae.outputs.status import Failure, RunState, read_status

FORMAT = 1


class JobState(Enum):
    """What became of a job; `killed` wrote that it is running and is not, `waiting` has not begun and will."""

    finished = "finished"
    failed = "failed"
    refused = "refused"
    interrupted = "interrupted"
    killed = "killed"
    running = "running"
    waiting = "waiting"
    not_started = "not started"

    @property
    def is_going(self) -> bool:
        """Whether something still works on the job, or will by itself."""
        return self in (JobState.running, JobState.waiting)


_ENDED = {
    RunState.failed: JobState.failed,
    RunState.refused: JobState.refused,
    RunState.interrupted: JobState.interrupted,
}


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        folder: its run's folder.
        name: the overrides that tell it from its neighbours, as in "arch=gated,seed=1".
        overrides: all of them.
    """

    folder: Path
    name: str
    overrides: list[str]

    def state(self) -> JobState:
        """What became of it, from its folder and, where Slurm has it, from Slurm's queue.

        Raises:
            ValueError: its `status.json` is damaged.
        """
        status = read_status(self.folder)
        if status is not None and status.state is RunState.finished:
            return JobState.finished
        queued = is_queued(self.folder)
        if status is not None and status.state is RunState.running:
            # The queue knows better than this host whether a process on another one is alive.
            alive = status.is_going() if queued is None else queued
            return JobState.running if alive else JobState.killed
        if queued:
            # Before its first try, or between two: after a preemption, or launched again after a failure.
            return JobState.waiting
        return JobState.not_started if status is None else _ENDED[status.state]

    def failure(self) -> Failure | None:
        """Why it ended early, as far as it could say."""
        status = read_status(self.folder)
        return status.failure if status else None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What `sweep.json` holds: enough to launch any of the jobs again.

    Attributes:
        folder: the sweep's.
        tag: names the sweep in MLflow: its folder relative to outputs/sweeps.
        started: when, in ISO form.
        command: the arguments it was started with.
        working_directory: where; relative paths in the overrides are taken from here.
        outputs: the outputs folder.
        config_dirs: folders of the user's own YAML files.
        hydra_overrides: the overrides of Hydra's own settings.
        constant: the overrides that all jobs share.
        varied: keys that differ between jobs.
        jobs: each job's overrides, by number; None where the sweeper decides on them as it goes.
    """

    folder: Path
    tag: str
    started: str
    command: list[str]
    working_directory: str
    outputs: str
    config_dirs: list[str]
    hydra_overrides: list[str]
    constant: list[str]
    varied: list[str]
    jobs: list[list[str]] | None

    @property
    def file(self) -> Path:
        """Where this is written."""
        return self.folder / "sweep.json"

    def write(self) -> None:
        """Replace `sweep.json` by this.

        Raises:
            OSError: it cannot be written.
        """
        write_json(self.file, {"format": FORMAT} | {k: v for k, v in asdict(self).items() if k != "folder"})

    def all_jobs(self) -> list[Job]:
        """Every job; where the sweeper decides on them as it goes, those that have begun."""
        if self.jobs is None:
            numbers = sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())
            folders = [self.folder / str(number) for number in numbers]
            jobs = [(folder, _recorded_overrides(folder)) for folder in folders]
        else:
            jobs = [(self.folder / str(number), overrides) for number, overrides in enumerate(self.jobs)]
        return [Job(folder, job_name(overrides, self.varied), overrides) for folder, overrides in jobs]


def read_sweep(folder: Path) -> Sweep:
    """The sweep in a folder.

    Raises:
        ValueError: there is none, or its `sweep.json` is damaged or of another version of fsae.
    """
    path = folder / "sweep.json"
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        found = written.pop("format")
        if found == FORMAT:
            return Sweep(folder=folder, **written)
    except FileNotFoundError:
        raise ValueError(f"{folder} is not a sweep's folder: it holds no {path.name}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} does not describe a sweep ({error!r}); it may be cut off") from error
    raise ValueError(f"{path} is of format {found}, this version of fsae reads {FORMAT}: use the version that wrote it")


def lock(folder: Path) -> FileLock:
    """Take a sweep's folder for this process, until the lock is released or the process ends.

    Raises:
        ValueError: another process drives the sweep.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = FileLock(folder / "sweep.lock")
    try:
        taken.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process is launching the sweep in {folder}; wait for it, or choose another hydra.sweep.dir"
        ) from None
    return taken


def job_name(overrides: Sequence[str], varied: Sequence[str]) -> str:
    """Those of a job's overrides that tell it from its neighbours, as in "arch=gated,seed=1"."""
    return ",".join(override for override in overrides if override.partition("=")[0] in varied)


def _recorded_overrides(folder: Path) -> list[str]:
    path = RunFolder(folder).overrides
    if not path.exists():
        return []
    return [json.loads(line.removeprefix("- ")) for line in path.read_text(encoding="utf-8").splitlines()]


def is_job(folder: Path) -> bool:
    """Whether a run's folder is that of a sweep's job."""
    return (folder.parent / "sweep.json").exists()


def run_name_and_tags(folder: Path, overrides: Sequence[str], penalty: str) -> tuple[str, dict[str, str]]:
    """Return the run's name in MLflow, which says its penalty, and the tags that tie a job to its sweep."""
    if not is_job(folder):
        return folder.name, {}
    sweep = read_sweep(folder.parent)
    name = job_name(overrides, sweep.varied) or folder.name
    # The name of a run of its own ends in the penalty, and so does that of a job whose sweep does not vary it.
    if "penalty" not in name:
        name = f"{name},penalty={penalty}"
    return name, sweep_tags(folder, sweep)


def sweep_tags(folder: Path, sweep: Sweep) -> dict[str, str]:
    """MLflow's tags of the job in a folder of a sweep."""
    return {"fsae.sweep": sweep.tag, "fsae.sweep_job": folder.name}

"""A sweep's folder: `sweep.json` lists the jobs, and each job's folder holds its state."""

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
    """The states of a job. `killed`: its status is running but its process is gone. `waiting`: it will start later."""

    finished = "finished"
    failed = "failed"
    refused = "refused"
    interrupted = "interrupted"
    killed = "killed"
    running = "running"
    waiting = "waiting"
    not_started = "not started"

    @property
    def is_active(self) -> bool:
        """True if the job is running, or will run without further action."""
        return self in (JobState.running, JobState.waiting)


_ENDED = {
    RunState.failed: JobState.failed,
    RunState.refused: JobState.refused,
    RunState.interrupted: JobState.interrupted,
}


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Attributes:
        folder: its run's folder.
        name: the overrides that distinguish it from the other jobs, such as "arch=gated,seed=1".
        overrides: all overrides.
    """

    folder: Path
    name: str
    overrides: list[str]

    def state(self) -> JobState:
        """Return the job's state, from its folder and, if it is a Slurm job, from Slurm's queue.

        Raises:
            ValueError: its `status.json` is damaged.
        """
        status = read_status(self.folder)
        if status is not None and status.state is RunState.finished:
            return JobState.finished
        queued = is_queued(self.folder)
        if status is not None and status.state is RunState.running:
            # The queue is better evidence than this host's for a process on another host.
            alive = status.is_alive() if queued is None else queued
            return JobState.running if alive else JobState.killed
        if queued:
            # Before its first attempt, or between two: after a preemption, or relaunched after a failure.
            return JobState.waiting
        return JobState.not_started if status is None else _ENDED[status.state]

    def failure(self) -> Failure | None:
        """Return why the job ended early, if its status states it."""
        status = read_status(self.folder)
        return status.failure if status else None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep, as `sweep.json` records it: enough to launch any of its jobs again.

    Attributes:
        folder: the sweep's folder.
        tag: the sweep's name in MLflow: its folder relative to outputs/sweeps.
        started: the time of its start, in ISO form.
        command: the arguments that started it.
        working_directory: the directory that relative paths in the overrides refer to.
        outputs: the outputs folder.
        config_dirs: folders of the user's own YAML files.
        hydra_overrides: the overrides of Hydra's own settings.
        constant: the overrides that all jobs share.
        varied: keys that differ between jobs.
        jobs: each job's overrides, by number; None if the sweeper chooses jobs from earlier results.
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
        """The path of `sweep.json`."""
        return self.folder / "sweep.json"

    def write(self) -> None:
        """Write `sweep.json`, replacing an earlier one.

        Raises:
            OSError: it cannot be written.
        """
        write_json(self.file, {"format": FORMAT} | {k: v for k, v in asdict(self).items() if k != "folder"})

    def all_jobs(self) -> list[Job]:
        """Return every job; if the sweeper chooses them from earlier results, those that have started."""
        if self.jobs is None:
            numbers = sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())
            folders = [self.folder / str(number) for number in numbers]
            jobs = [(folder, recorded_overrides(folder)) for folder in folders]
        else:
            jobs = [(self.folder / str(number), overrides) for number, overrides in enumerate(self.jobs)]
        return [Job(folder, job_name(overrides, self.varied), overrides) for folder, overrides in jobs]


def read_sweep(folder: Path) -> Sweep:
    """Read the sweep in a folder.

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
    """Lock a sweep's folder for this process, until the lock is released or the process ends.

    Raises:
        ValueError: another process is launching the sweep.
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
    """Return the overrides that distinguish a job from the other jobs, such as "arch=gated,seed=1"."""
    return ",".join(override for override in overrides if override.partition("=")[0] in varied)


def recorded_overrides(folder: Path) -> list[str]:
    """Return the overrides that a run wrote down when it began; none if it did not begin."""
    path = RunFolder(folder).overrides
    if not path.exists():
        return []
    return [json.loads(line.removeprefix("- ")) for line in path.read_text(encoding="utf-8").splitlines()]


def is_job(folder: Path) -> bool:
    """Return whether a run's folder belongs to a sweep's job."""
    return (folder.parent / "sweep.json").exists()


def run_name_and_tags(folder: Path, overrides: Sequence[str], penalty: str, named: bool) -> tuple[str, dict[str, str]]:
    """Return the run's name in MLflow, which names its penalty, and the tags that link a job to its sweep.

    Args:
        folder: the run's folder.
        overrides: all overrides of the run.
        penalty: the choice of `loss.penalty`.
        named: whether the folder has a name of the user's choice, instead of one that ends in the penalty.
    """
    if not is_job(folder):
        return f"{folder.name},penalty={penalty}" if named else folder.name, {}
    sweep = read_sweep(folder.parent)
    name = job_name(overrides, sweep.varied) or folder.name
    # The name of a job ends in the penalty if the sweep does not vary it.
    if not ({"penalty", "loss.penalty"} & set(sweep.varied)):
        name = f"{name},penalty={penalty}"
    return name, sweep_tags(folder, sweep)


def sweep_tags(folder: Path, sweep: Sweep) -> dict[str, str]:
    """Return MLflow's tags of a sweep's job."""
    return {"fsae.sweep": sweep.tag, "fsae.sweep_job": folder.name}

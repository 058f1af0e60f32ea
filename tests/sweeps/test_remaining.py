"""The jobs that `fsae.resume` launches."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from fsae.outputs.status import RunState, mark
from fsae.outputs.sweep_folder import Sweep
from fsae.sweeps.remaining import RemainingJobs


class Noted(Launcher):
    """A launcher that records jobs and launches none."""

    def __init__(self):
        self.asked: list[list[str]] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Do nothing."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        self.asked = [list(overrides) for overrides in job_overrides]
        return [JobReturn(_return_value=0.0, status=JobStatus.COMPLETED) for _ in job_overrides]


def launched(folder: Path, jobs: list[list[str]] | None, *arguments: str) -> list[list[str]]:
    """Return the jobs that are launched of a sweep in `folder`."""
    Sweep(
        folder=folder, tag="one", started="", command=[], working_directory="/", outputs="/", config_dirs=[],
        hydra_overrides=[], constant=[], varied=["seed"], jobs=jobs,
    ).write()  # fmt: skip
    sweeper, noted = RemainingJobs(), Noted()
    sweeper.folder, sweeper.launcher = folder, noted
    sweeper.sweep(list(arguments))
    return noted.asked


def marked(folder: Path, state: RunState) -> Path:
    folder.mkdir()
    mark(folder, state)
    return folder


def test_unfinished_jobs_go_to_their_own_folders_by_the_given_launcher(tmp_path: Path):
    for job, state in enumerate((RunState.finished, RunState.failed, RunState.running)):
        marked(tmp_path / str(job), state)
    jobs = [["launcher=slurm", f"seed={seed}"] for seed in range(4)]
    assert launched(tmp_path, jobs, "launcher=joblib", "model=tiny") == [
        ["seed=1", "launcher=joblib", "hydra.sweep.subdir=1"],
        ["seed=3", "launcher=joblib", "hydra.sweep.subdir=3"],
    ]


def test_a_searchs_trial_without_recorded_overrides_is_not_launched(tmp_path: Path):
    """Without overrides it would be another job, with all settings at their defaults."""
    marked(tmp_path / "0", RunState.refused)
    (marked(tmp_path / "1", RunState.failed) / "overrides.yaml").write_text('- "seed=1"\n')
    assert launched(tmp_path, None) == [["seed=1", "hydra.sweep.subdir=1"]]


def test_a_grids_job_may_have_no_overrides(tmp_path: Path):
    assert launched(tmp_path, [[]]) == [["hydra.sweep.subdir=0"]]

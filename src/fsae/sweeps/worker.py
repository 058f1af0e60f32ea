"""What a launcher hands to its workers: one job at a time, and whatever comes of it as Hydra's record of a job."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from fsae.configuration.refusal import report_error
from fsae.configuration.resolvers import register_resolvers
from fsae.console import console


class JobLostError(ChildProcessError):
    """A job's process ended without a word: killed, out of memory, or its machine went down."""


class Worker:
    """Runs jobs of one sweep, in this process or, pickled, in another.

    Args:
        hydra_context: as a launcher is given it, like the rest.
    """

    def __init__(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig):
        self._hydra_context = hydra_context
        self._task_function = task_function
        self._config = config
        self._singletons = Singleton.get_state()

    @console(bars=False)
    def __call__(self, overrides: Sequence[str], number: int) -> JobReturn:
        """Compose the job's config and run it; what it raises is in the returned record."""
        Singleton.set_state(self._singletons)
        setup_globals()
        register_resolvers()
        config = self.compose(overrides, number)
        HydraConfig.instance().set_config(config)
        return run_job(
            hydra_context=self._hydra_context,
            task_function=self._task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def checkpoint(self, *job: Any) -> Any:
        """What submitit starts when it puts the job back into Slurm's queue: the same again, it finds its folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *job)

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """The job's whole config, Hydra's own settings included."""
        config = self._hydra_context.config_loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def folder(self, overrides: Sequence[str], number: int) -> Path:
        """The run folder that the job will have."""
        config = self.compose(overrides, number)
        HydraConfig.instance().set_config(config)
        return Path(config.hydra.sweep.dir) / str(OmegaConf.select(config, "hydra.sweep.subdir"))

    def lost(self, overrides: Sequence[str], number: int, reason: str) -> JobReturn:
        """The record of a job whose process ended without one."""
        folder = self.folder(overrides, number)
        error = JobLostError(
            f"job {folder.name} ended without a result ({reason}); what it did until then is in {folder}"
        )
        report_error(error, folder)
        lost = JobReturn(overrides=list(overrides), status=JobStatus.FAILED)
        lost.return_value = error
        return lost


class WorkerLauncher(Launcher):
    """A launcher whose jobs a `Worker` runs; how the worker gets to them is the subclass's."""

    worker: Worker
    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra knows of the sweep."""
        self.config = config
        self.worker = Worker(hydra_context=hydra_context, task_function=task_function, config=config)

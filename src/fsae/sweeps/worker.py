"""The worker of a launcher: runs one job at a time and returns Hydra's record of it, whatever ends the job."""

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
    """A job's process ended without a result: killed, out of memory, or its machine went down."""


class Worker:
    """A runner of one sweep's jobs, in this process or, pickled, in another.

    Args:
        hydra_context, task_function, config: the arguments of a launcher's `setup`.
    """

    def __init__(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig):
        self._hydra_context = hydra_context
        self._task_function = task_function
        self._config = config
        self._singletons = Singleton.get_state()

    @console(bars=False)
    def __call__(self, overrides: Sequence[str], number: int) -> JobReturn:
        """Compose the job's config and run it; the returned record holds the error, if any."""
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
        """Return the same job for submitit to put back into Slurm's queue; the job finds its folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *job)

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """Return the job's whole config, including Hydra's own settings."""
        config = self._hydra_context.config_loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def folder(self, overrides: Sequence[str], number: int) -> Path:
        """Return the run folder that the job will have."""
        config = self.compose(overrides, number)
        HydraConfig.instance().set_config(config)
        return Path(config.hydra.sweep.dir) / str(OmegaConf.select(config, "hydra.sweep.subdir"))

    def lost(self, overrides: Sequence[str], number: int, reason: str) -> JobReturn:
        """Return the record of a job whose process ended without one."""
        folder = self.folder(overrides, number)
        error = JobLostError(f"job {folder.name} ended without a result ({reason}); its log until then is in {folder}")
        report_error(error, folder)
        lost = JobReturn(overrides=list(overrides), status=JobStatus.FAILED)
        lost.return_value = error
        return lost


class WorkerLauncher(Launcher):
    """A launcher whose jobs a `Worker` runs; subclasses decide how jobs reach the worker."""

    worker: Worker
    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context of the sweep and create the worker."""
        self.config = config
        self.worker = Worker(hydra_context=hydra_context, task_function=task_function, config=config)

"""The sweeper of `fsae.resume`: launches the unfinished jobs of a sweep into their own folders."""

import logging
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from fsae.outputs.sweep_folder import JobState, read_sweep

log = logging.getLogger(__name__)


class RemainingJobs(Sweeper):
    """A sweeper that launches the unfinished jobs in `hydra.sweep.dir`, whichever sweeper started the sweep.

    Args:
        former: settings of that sweeper, which are ignored.
    """

    folder: Path

    def __init__(self, **former: Any):
        pass

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context of the sweep."""
        self.folder = Path(config.hydra.sweep.dir)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Launch the jobs.

        Raises:
            Exception: the first of the errors that ended a job, once all jobs are over.
        """
        sweep = read_sweep(self.folder)
        jobs = [(job, job.state()) for job in sweep.all_jobs()]
        for job, state in jobs:
            if state.is_active:
                log.warning("job %s (%s) is still %s and is not launched", job.folder.name, job.name, state.value)
        remaining = [job for job, state in jobs if not state.is_active and state is not JobState.finished]
        if sweep.jobs is None:
            # Only the sweeper, which is gone, knew the settings of these jobs.
            unknown = [job for job in remaining if not job.overrides]
            for job in unknown:
                log.warning("job %s ended before it stored its settings: it is not launched again", job.folder.name)
            remaining = [job for job in remaining if job not in unknown]
        if not remaining:
            log.info("nothing to launch")
            return
        launcher = [each for each in arguments if each.startswith("launcher=")]
        overrides = [
            [*_without_launcher(job.overrides), *launcher, f"hydra.sweep.subdir={job.folder.name}"] for job in remaining
        ]
        assert self.launcher is not None
        for job in self.launcher.launch(overrides, initial_job_idx=0):
            # Raises the error that ended the job.
            _ = job.return_value


def _without_launcher(overrides: list[str]) -> list[str]:
    return [override for override in overrides if not override.startswith("launcher=")]

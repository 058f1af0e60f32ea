"""A sweeper for `fsae.evaluate`: launches the evaluation of finished runs, each in its own folder."""

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from fsae.configuration.finished import evaluations_of
from fsae.configuration.overrides import quoted
from fsae.outputs.sweep_folder import recorded_overrides

log = logging.getLogger(__name__)

# What a run was given once, and what is given to its evaluation instead.
_NOT_ITS_OWN = ("task", "launcher", "eval", "suite", "hydra")


class FinishedRuns(Sweeper):
    """Launches one job for each finished run.

    Args:
        folders: of the runs.
        former: settings of the sweeper that a run's preset chose, not needed any more.
    """

    def __init__(self, folders: Sequence[str], **former: object):
        self.folders = [Path(folder) for folder in folders]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra knows of the command."""
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Launch the jobs.

        Raises:
            Exception: the first of those that ended a job, once all jobs are over.
        """
        assert self.launcher is not None
        overrides = [job_overrides(folder, arguments) for folder in self.folders]
        for job in self.launcher.launch(overrides, initial_job_idx=0):
            # Raises what ended the job.
            _ = job.return_value


def job_overrides(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Return the overrides of the job that evaluates the run in a folder: the run's own choices, and the command's.

    Raises:
        ValueError: the run does not say by what it was evaluated, and the command does not name it.
    """
    own = [override for override in recorded_overrides(folder) if _group(override) not in _NOT_ITS_OWN]
    listed = [] if any(each.startswith("eval=") for each in arguments) else evaluations_of(folder)
    return [
        *own,
        *arguments,
        *([f"eval=[{','.join(listed)}]"] if listed else []),
        f"hydra.sweep.dir={quoted(folder.parent)}",
        f"hydra.sweep.subdir={quoted(folder.name)}",
    ]


def _group(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].replace("/", ".").partition(".")[0]

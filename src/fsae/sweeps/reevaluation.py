"""The sweeper of `fsae.evaluate`: launches the evaluation of finished runs, each in its own folder."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from fsae.configuration.overrides import SUITE, named_evaluations, quoted
from fsae.configuration.recorded import recorded_evaluations
from fsae.outputs.results import Meaning, in_order, meaning_of, read_results, results_table
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.sweep_folder import is_job
from fsae.sweeps.launch import check_launcher, launching
from fsae.tracking.server import shell_command

log = logging.getLogger(__name__)

# The remedy after an interruption.
START_AGAIN = "the same command of fsae.evaluate starts the evaluation again"
# If there are several runs, the line of each has the most important numbers.
NUMBERS_IN_A_LINE = 6


class Reevaluation(Sweeper):
    """A sweeper that launches one job for each finished run.

    Args:
        folders: the folders of the runs.
    """

    def __init__(self, folders: Sequence[str]):
        self.folders = [Path(folder) for folder in folders]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher.

        Raises:
            ValueError: it cannot start jobs on this machine.
        """
        check_launcher(config)
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
        earlier = [_evaluated(folder) for folder in self.folders]
        with launching("evaluate"):
            try:
                jobs = self.launcher.launch(overrides, initial_job_idx=0)
            finally:
                before = zip(self.folders, overrides, earlier, strict=True)
                _print_numbers([(folder, job) for folder, job, time in before if _evaluated(folder) != time])
        for job in jobs:
            # Raises what ended the job.
            _ = job.return_value


def job_overrides(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Return the overrides of the job that evaluates the run in a folder.

    Raises:
        ValueError: the run does not name its evaluations, and neither does the command.
    """
    named = named_evaluations(arguments)
    return [
        *arguments,
        *([] if named else [f"eval=[{','.join(recorded_evaluations(folder))}]"]),
        f"hydra.sweep.dir={quoted(folder.parent)}",
        f"hydra.sweep.subdir={quoted(folder.name)}",
    ]


def _evaluated(folder: Path) -> str | None:
    """Return the time at which a run was last evaluated again; None if it never was."""
    return read_results(RunFolder(folder).results).get("evaluated")


def _print_numbers(measured: Sequence[tuple[Path, Sequence[str]]]) -> None:
    """Print the new numbers of runs, given with the overrides of their jobs, and the command that compares the runs."""
    found = [(folder, *_numbers(folder, overrides)) for folder, overrides in measured]
    if len(found) == 1:
        folder, numbers, meanings = found[0]
        print(f"\n{results_table(numbers, meanings)}\n\nrun folder:  {folder}")
    elif found:
        print()
        for folder, numbers, meanings in found:
            names = [name for name in in_order(meanings) if name in numbers][:NUMBERS_IN_A_LINE]
            print(f"{folder}: {', '.join(f'{name} {numbers[name]:.4g}' for name in names)}")
        sweeps = {folder.parent if is_job(folder) else folder: None for folder, *_ in found}
        print(f"\ncompare:     {shell_command('report', *sweeps)}")


def _numbers(folder: Path, overrides: Sequence[str]) -> tuple[dict[str, float], dict[str, Meaning]]:
    """Return the numbers of the evaluations that a job named, and their meanings."""
    named, evaluations = named_evaluations(overrides), RunFolder(folder).evaluations
    numbers, meanings = dict[str, float](), dict[str, Meaning]()
    for file in sorted(evaluations.glob("*.json")):
        if file.stem not in named and SUITE not in named:
            continue
        written = json.loads(file.read_text(encoding="utf-8"))
        numbers |= {each: value for each, value in written["numbers"].items() if value is not None}
        meanings |= {each: meaning_of(meaning) for each, meaning in written["meanings"].items()}
    return numbers, meanings

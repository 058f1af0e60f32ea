"""Evaluate finished runs again: python -m fsae.evaluate RUN_OR_SWEEP... [eval=[...]] [launcher=...]"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fsae.configuration.overrides import check_choices, check_single, named_evaluations, quoted
from fsae.configuration.recorded import recorded_evaluations, recorded_outputs
from fsae.configuration.refusal import MENDABLE, explain
from fsae.console import console
from fsae.outputs.sweep_folder import is_job, read_sweep
from fsae.runs.finished import check_finished

# What the command may be given besides folders.
_GROUPS = ("eval", "suite", "launcher", "hydra.launcher")


@console()
def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate finished runs again in their own folders, without training.

    Raises:
        SystemExit: with status 0 if every run was evaluated, 2 for folders that hold no finished run or for overrides
            that an evaluation cannot have, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fsae.evaluate",
        description="Evaluate finished runs again, without training. New numbers join those in the run's results.json "
        "and in MLflow; a number that is measured again is replaced.",
        epilog="eval=[vectors,geometry] names what is measured (what a run lists, if it is left out), "
        "eval.geometry.samples=1000 sets a size, launcher=packed evaluates runs of one stream together.",
    )
    parser.add_argument("what", nargs="+", metavar="RUN_OR_SWEEP|OVERRIDE", help="folders of runs or sweeps; overrides")
    parser.add_argument(
        "--config-dir",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder of further YAML files that the runs were started with; may be repeated",
    )
    options = parser.parse_intermixed_args(arguments)
    overrides = [each for each in options.what if "=" in each and not Path(each).exists()]
    folders = [Path(each).resolve() for each in options.what if each not in overrides]
    try:
        command = _command(folders, overrides, options.config_dir)
    except MENDABLE as error:
        print(f"fsae: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = ["fsae.evaluate", *command]
    from fsae.commands.run import main as run

    run()


def _command(folders: Sequence[Path], overrides: Sequence[str], config_dirs: Sequence[str]) -> list[str]:
    """Return the arguments of `fsae.run` that evaluate the runs in these folders."""
    foreign = [each for each in overrides if not _is_known(each)]
    if foreign:
        raise ValueError(
            f"{foreign[0]}: a run is evaluated with the settings that it has; only eval, suite and the launcher can be "
            "given, as in eval=[vectors,geometry] launcher=packed"
        )
    check_choices(overrides)
    check_single(overrides)
    if not folders:
        raise ValueError("name the folder of a run or of a sweep")
    runs = list(dict.fromkeys(run for folder in folders for run in _runs(folder)))
    for run in runs:
        check_finished(run)
        if not named_evaluations(overrides):
            recorded_evaluations(run)
    os.environ["FSAE_OUTPUTS"] = recorded_outputs(runs[0])
    own = [str(Path(each).absolute()) for each in config_dirs]
    return [
        "--multirun",
        *(f"--config-dir={each}" for each in dict.fromkeys([*own, *_recorded_config_dirs(runs)])),
        "task=reevaluate",
        *overrides,
        "hydra/sweeper=reevaluation",
        f"hydra.sweeper.folders=[{','.join(map(quoted, runs))}]",
        f"hydra.sweep.dir={quoted(runs[0].parent)}",
        # It would claim the folder as a new sweep's.
        "~hydra.callbacks.sweep",
    ]


def _is_known(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+").replace("/", ".")
    return any(key == group or key.startswith(f"{group}.") for group in _GROUPS)


def _runs(folder: Path) -> list[Path]:
    """Return the run in a folder, or the finished jobs of a sweep.

    Raises:
        ValueError: the folder holds neither, or no job of the sweep has finished.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name a run's or a sweep's, as in outputs/sweeps/<date>/<time>")
    if not (folder / "sweep.json").exists():
        return [folder]
    jobs = [job.folder for job in read_sweep(folder).all_jobs()]
    finished = list(_finished(jobs))
    if not finished:
        raise ValueError(f"no job of the sweep in {folder} has finished; finish it with fsae.resume")
    return finished


def _finished(jobs: Iterable[Path]) -> Iterator[Path]:
    for job in jobs:
        try:
            check_finished(job)
            yield job
        except ValueError as error:
            print(f"fsae: not evaluated: {error}", file=sys.stderr)


def _recorded_config_dirs(runs: Iterable[Path]) -> list[str]:
    """Return the folders of YAML files that the sweeps of these runs were started with, if they still exist."""
    sweeps = [read_sweep(folder) for folder in dict.fromkeys(run.parent for run in runs if is_job(run))]
    recorded = dict.fromkeys(each for sweep in sweeps for each in sweep.config_dirs)
    # An evaluation may not need them; one that does is refused by its name.
    gone = [each for each in recorded if not Path(each).is_dir()]
    for each in gone:
        print(f"fsae: the sweep was started with --config-dir={each}, and there is no such folder now", file=sys.stderr)
    return [each for each in recorded if each not in gone]

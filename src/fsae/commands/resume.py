"""Finish a sweep by launching its unfinished jobs: python -m fsae.resume SWEEP_DIR"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fsae.configuration.overrides import quoted
from fsae.console import console
from fsae.outputs.sweep_folder import Sweep, read_sweep

# Settings that a resumed sweep sets itself.
_OWN = ("hydra.mode", "hydra.sweep.dir", "hydra/sweeper", "hydra.sweeper")


@console()
def main(arguments: Sequence[str] | None = None) -> None:
    """Launch the jobs of a sweep that are not finished, by the same launcher or another one.

    Raises:
        SystemExit: with status 0 if every job of the sweep is finished at the end, 2 for a folder that holds no sweep
            or for overrides that its rest cannot have, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fsae.resume",
        description="Launch the jobs of a sweep that are not finished: each resumes in its own folder, from its last "
        "checkpoint. Finished jobs and jobs that are still running are not touched.",
    )
    parser.add_argument("sweep", type=Path, metavar="SWEEP_DIR", help="a sweep's folder")
    parser.add_argument(
        "launcher",
        nargs="*",
        metavar="OVERRIDE",
        help="another launcher (launcher=joblib) or settings of the launcher (hydra.launcher.n_jobs=4)",
    )
    options = parser.parse_args(arguments)
    try:
        sweep = read_sweep(options.sweep.absolute())
        command = _command(sweep, options.launcher)
        # The working directory of the sweep's start, so that relative paths mean the same.
        os.chdir(sweep.working_directory)
    except (ValueError, OSError) as error:
        print(f"fsae: {error}", file=sys.stderr)
        sys.exit(2)
    os.environ["FSAE_OUTPUTS"] = sweep.outputs
    sys.argv = ["fsae.resume", *command]
    from fsae.commands.run import main as run

    run()


def _command(sweep: Sweep, launcher: Sequence[str]) -> list[str]:
    """Return the arguments of `fsae.run` that launch the rest of a sweep."""
    foreign = [each for each in launcher if not each.startswith(("launcher=", "hydra.launcher.", "hydra/launcher"))]
    if foreign:
        raise ValueError(
            f"{foreign[0]}: a sweep is finished with the settings it began with; only its launcher can change, as "
            "in launcher=joblib hydra.launcher.n_jobs=4"
        )
    another = any(each.startswith("launcher=") for each in launcher)
    dropped = (*_OWN, "hydra.launcher", "hydra/launcher") if another else _OWN
    given = {each.partition("=")[0] for each in launcher}
    kept = [*sweep.constant, *(each for each in sweep.hydra_overrides if not each.lstrip("+~").startswith(dropped))]
    return [
        "--multirun",
        *(f"--config-dir={folder}" for folder in sweep.config_dirs),
        *(each for each in kept if each.partition("=")[0] not in given),
        *launcher,
        f"hydra.sweep.dir={quoted(sweep.folder)}",
        "hydra/sweeper=remaining",
        "hydra.callbacks.sweep.resumed=true",
    ]

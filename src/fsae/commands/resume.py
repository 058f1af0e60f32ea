"""Finish a sweep, launching only what is not finished: python -m fsae.resume SWEEP_DIR"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fsae.configuration.overrides import quoted
from fsae.console import console
from fsae.outputs.sweep_folder import Sweep, read_sweep

# What a resumed sweep sets for itself.
_OWN = ("hydra.mode", "hydra.sweep.dir", "hydra/sweeper", "hydra.sweeper")


@console()
def main(arguments: Sequence[str] | None = None) -> None:
    """Launch the jobs of a sweep that are not finished, as they were launched or by another launcher.

    Raises:
        SystemExit: with status 0 where every job of the sweep is finished at the end, 1 where not, 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fsae.resume",
        description="Launch those jobs of a sweep that are not finished: each goes on in its own folder, from its last "
        "checkpoint. Finished ones are left as they are, and so are those that are still going on.",
    )
    parser.add_argument("sweep", type=Path, metavar="SWEEP_DIR", help="a sweep's folder")
    parser.add_argument(
        "launcher",
        nargs="*",
        metavar="OVERRIDE",
        help="another launcher (launcher=joblib) or settings of it (hydra.launcher.n_jobs=4)",
    )
    options = parser.parse_args(arguments)
    try:
        sweep = read_sweep(options.sweep.absolute())
        command = _command(sweep, options.launcher)
        # As it was when the sweep began: relative paths, and where everything goes, are to mean the same.
        os.chdir(sweep.working_directory)
    except (ValueError, OSError) as error:
        print(f"fsae: {error}", file=sys.stderr)
        sys.exit(2)
    os.environ["FSAE_OUTPUTS"] = sweep.outputs
    sys.argv = ["fsae.resume", *command]
    from fsae.commands.run import main as run

    run()


def _command(sweep: Sweep, launcher: Sequence[str]) -> list[str]:
    """The arguments of `fsae.run` that launch what is left of a sweep."""
    foreign = [each for each in launcher if not each.startswith(("launcher=", "hydra.launcher.", "hydra/launcher"))]
    if foreign:
        raise ValueError(
            f"{foreign[0]}: a sweep is finished with the settings it began with; only its launcher can be another, as "
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

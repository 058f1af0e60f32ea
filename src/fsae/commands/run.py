"""The command `fsae.run`: compose the settings, check them, and run the job or the sweep.

python -m fsae.run model=gemma2b arch=gated
"""

import logging
import os
import signal
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fsae.configuration.accept import accept
from fsae.configuration.conf_folder import conf_folder
from fsae.configuration.folders import outputs_folder_of
from fsae.configuration.overrides import check_choices, options_first, with_lists, with_one_config_dir
from fsae.configuration.refusal import MENDABLE, included_itself, refuse, report_error, was_reported
from fsae.configuration.resolvers import register_resolvers
from fsae.configuration.schema import Task, register_schemas
from fsae.console import console
from fsae.credentials import without_passwords
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.run_log import run_log
from fsae.progress import working
from fsae.sweeps.launch import is_launching, sweep_end_reported
from fsae.sweeps.reevaluation import START_AGAIN
from fsae.training.interruption import Interrupted, Interruption, hand_on

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def run(config: DictConfig) -> float | None:
    """Run one job. Returns the value that a sweeper minimises (`search`), or None for a job without an evaluation."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    in_sweep = hydra_config.mode is RunMode.MULTIRUN
    with run_log(folder):
        try:
            # From here on a signal is noted, also during slow imports, and acted on once it can be recorded. The
            # context is left before the signal is passed on to the handlers that were installed earlier.
            with Interruption():
                settings, origin = accept(config, folder, hydra_config.overrides.task)
                # Imported only now: this takes seconds, and wrong settings should be reported at once.
                with working("importing what a run needs"):
                    from fsae.runs.pack import run_experiment

                results = run_experiment(settings, origin)
            return settings.search_value(results) if in_sweep else None
        except Interrupted as interrupted:
            if in_sweep and not is_launching():
                # A signal to one worker does not stop the sweep's other jobs.
                hand_on(interrupted)
                raise
            log.warning("%s; %s", interrupted, _remedy(config.task, in_sweep, folder))
            sys.exit(128 + signal.Signals[interrupted.signal_name])
        except Exception as error:
            report_error(error, folder)
            if not in_sweep:
                sys.exit(1)
            # Hydra keeps the error until the sweep's other jobs have run, and its frames would each keep a model.
            traceback.clear_frames(error.__traceback__)
            raise


def _remedy(task: Task, in_sweep: bool, folder: Path) -> str:
    """Return how to continue an interrupted job."""
    if task is Task.reevaluate:
        return START_AGAIN
    command = "fsae.resume" if in_sweep else "the same command"
    has_state = (RunFolder(folder).checkpoints / "latest.pt").exists()
    return f"{command} {'resumes from the saved state' if has_state else 'starts it again'}"


@console()
def main() -> None:
    """Run `python -m fsae.run`, or the console script `fsae`."""
    try:
        sys.argv[1:] = without_passwords(sys.argv[1:])
    except ValueError as error:
        refuse(error, outputs_folder_of(sys.argv[1:]))
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    # Makes Hydra raise instead of print, so that its errors are reported and recorded like all others.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = with_lists(options_first(sys.argv[1:]))
    try:
        sys.argv[1:] = with_one_config_dir(sys.argv[1:])
        register_schemas()
        register_resolvers()
        check_choices(sys.argv[1:])
        with sweep_end_reported():
            run()
    except Exception as error:
        if isinstance(error, RecursionError):
            error = included_itself(sys.argv[1:])
        if wants_traceback:
            raise
        if was_reported(error) or isinstance(error, Interrupted):
            sys.exit(1)
        if not isinstance(error, MENDABLE):
            raise
        refuse(error, outputs_folder_of(sys.argv[1:]))

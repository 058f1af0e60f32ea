"""The entry point: compose the settings, check them, hand over.

    python -m fsae.run model=gemma2b arch=gated

It holds no class and no dataclass: a cluster launcher pickles this module by value.
"""

import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsae.configuration.checks import check
from fsae.configuration.conf_folder import conf_folder
from fsae.configuration.refusal import MENDABLE, explain, record_refusal, tell, was_told
from fsae.configuration.resolvers import deciding_settings, flat_settings, register_resolvers
from fsae.configuration.schema import register_schemas, settings_of
from fsae.training.interruption import Interrupted

log = logging.getLogger(__name__)

register_schemas()
register_resolvers()


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def run(config: DictConfig) -> float | None:
    """One job. Returns what a sweeper may minimise: the held-out fraction of variance unexplained."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        try:
            settings = settings_of(config)
            check(settings)
        except (ValueError, OmegaConfBaseException) as error:
            record_refusal(error, folder, Path(config.paths.outputs))
            raise
        # Imported only now: what it needs takes seconds, and wrong settings shall be told at once.
        from fsae.run_experiment import Origin, run_experiment

        origin = Origin(
            folder=folder,
            config_yaml=OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(config, resolve=True))),
            overrides=list(hydra_config.overrides.task),
            deciding=deciding_settings(config),
            flat=flat_settings(config),
        )
        return run_experiment(settings, origin).get("eval/fvu")
    except Interrupted as interrupted:
        # Also in a sweep: who stops the process does not mean one job of it.
        log.warning("%s; the same command goes on from the saved state", interrupted)
        sys.exit(128 + signal.Signals[interrupted.signal_name])
    except Exception as error:
        tell(error, folder)
        if hydra_config.mode is RunMode.RUN:
            sys.exit(1)
        # Hydra keeps it until the sweep's other jobs have run.
        raise


def main() -> None:
    """`python -m fsae.run`, and the console script `fsae`."""
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    # Hydra then raises instead of printing, so that a refused composition is told and recorded as everything else.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        run()
    except Exception as error:
        if wants_traceback:
            raise
        if was_told(error):
            sys.exit(1)
        if not isinstance(error, MENDABLE):
            raise
        message = explain(error)
        print(f"fsae: {message}", file=sys.stderr)
        # The outputs folder may be what is wrong, and that was told.
        with suppress(OSError):
            record_refusal(error)
        sys.exit(1)


if __name__ == "__main__":
    main()

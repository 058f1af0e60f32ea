"""The step from a job's Hydra config to the settings of a run and their origin."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsae.configuration.checks import check, check_files
from fsae.configuration.existing import apply_provenance, with_its_norm_limit
from fsae.configuration.origin import Origin, origin_of
from fsae.configuration.overrides import SUITE, named_evaluations
from fsae.configuration.recorded import with_evaluations_of
from fsae.configuration.refusal import record_refusal
from fsae.configuration.resolvers import absolute_paths, flat_settings
from fsae.configuration.schema import RunSettings, Task, settings_of
from fsae.credentials import SETTING, holds_secret, keep, refuse_secret, without_passwords
from fsae.evaluation.suite import ATTENTION, MEMBERS, chosen
from fsae.export.dictionary_files import read_provenance
from fsae.outputs.sweep_folder import is_job


def checked(
    config: DictConfig, overrides: Sequence[str] = (), in_sweep: bool = False, trained: bool = False
) -> RunSettings:
    """Return settings that pass every check that needs nothing loaded.

    Paths in `config` become absolute, and a password in it is moved into the environment. Evaluations that the
    source or the population does not allow are left out, unless one of the `overrides` names them: then they are
    refused. The jobs of a sweep are measured by evaluations of single runs only if an override names them. A run that
    is trained can have no other source or population, so no remedy proposes one.

    Raises:
        ValueError: a check fails.
        OmegaConfBaseException: the config does not fit its schema.
    """
    keep_password(config)
    if not trained:
        refuse_reevaluation(config)
    for key, path in absolute_paths(config).items():
        refuse_secret(str(OmegaConf.select(config, key)), key)
        OmegaConf.update(config, key, path)
    settings = settings_of(config)
    named = named_evaluations(overrides)
    # Runs of one pack have the same evaluations; those of populations are measured of each run that has members.
    several = settings.population.size > 1 or not named - {SUITE}
    provided = settings.source.provides | settings.layout.provides
    if several and not settings.layout.pair:
        provided |= {MEMBERS}
    if settings.site is not None and settings.site.of_attention:
        provided |= {ATTENTION}
    settings = replace(settings, eval=chosen(settings.eval, provided, named, in_sweep and not named, trained))
    for key, text in flat_settings(config).items():
        refuse_secret(text, key)
    check(settings)
    check_files(settings)
    return apply_provenance(settings)


def accept(config: DictConfig, folder: Path, overrides: Sequence[str]) -> tuple[RunSettings, Origin]:
    """Return settings that can be run, and their origin.

    Args:
        config: the composed config, without Hydra's own settings.
        folder: the run's folder.
        overrides: the command line's overrides.

    Raises:
        ValueError: the settings cannot be run; the refusal is recorded first.
        OmegaConfBaseException: the config does not fit its schema; the refusal is recorded first.
    """
    try:
        overrides = without_passwords(overrides)
        again = config.task is Task.reevaluate
        if again:
            config = with_evaluations_of(config, folder, overrides)
        settings = checked(config, overrides, in_sweep=is_job(folder) and not again, trained=again)
        if again and settings.sae.path is None:
            settings = _as_trained(settings, folder)
    except (ValueError, OmegaConfBaseException) as error:
        record_refusal(error, Path(config.paths.outputs), folder)
        raise
    return settings, origin_of(config, folder, overrides)


def _as_trained(settings: RunSettings, folder: Path) -> RunSettings:
    """Return the settings with the norm above which the folder's finished run left out activations in training."""
    sae = folder / "sae"
    if settings.layout.pair:
        limits = [read_provenance(sae / str(number)).max_activation_norm for number in range(settings.population.size)]
        own = [limit for limit in limits if limit is not None]
        return replace(settings, source=settings.source.with_norm_limits(own)) if own else settings
    exported = sae / "0" if (sae / "0").is_dir() else sae
    return replace(settings, source=with_its_norm_limit(settings.source, read_provenance(exported), exported))


def refuse_reevaluation(config: DictConfig) -> None:
    """Raise ValueError for the task that only `fsae.evaluate` sets: without a finished run it has no meaning."""
    if config.task is Task.reevaluate:
        raise ValueError("task=reevaluate evaluates a finished run again; use python -m fsae.evaluate RUN")


def keep_password(config: DictConfig) -> None:
    """Put the password of `tracking.uri` into the environment, and the address without it into the config.

    Raises:
        ValueError: the end of the password cannot be determined.
    """
    uri = OmegaConf.select(config, SETTING)
    if isinstance(uri, str) and holds_secret(uri):
        OmegaConf.update(config, SETTING, keep(uri, SETTING))

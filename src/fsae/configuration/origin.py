"""The origin of a run's settings, as the run's records have it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fsae.configuration.resolvers import deciding_settings, flat_settings


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin of a run's settings, for its records.

    Attributes:
        folder: the run's folder.
        config_yaml: the resolved config.
        overrides: the command line's overrides.
        deciding: flattened settings that decide the numbers.
        flat: all settings, flattened.
    """

    folder: Path
    config_yaml: str
    overrides: Sequence[str]
    deciding: dict[str, str]
    flat: dict[str, str]


def origin_of(config: DictConfig, folder: Path, overrides: Sequence[str]) -> Origin:
    """Return the origin of the settings in a config.

    Args:
        config: all settings, without Hydra's own.
        folder: the run's folder.
        overrides: the changes of the defaults, in the command line's words.
    """
    return Origin(
        folder=folder,
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(config, resolve=True))),
        overrides=overrides,
        deciding=deciding_settings(config),
        flat=flat_settings(config),
    )

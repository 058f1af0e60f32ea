"""A run's settings without a command line: composed from the same YAML files, so that defaults are the command's."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fsae.configuration.conf_folder import conf_folder
from fsae.configuration.overrides import check_choices
from fsae.configuration.refusal import explain
from fsae.configuration.resolvers import register_resolvers
from fsae.configuration.schema import RunSettings, register_schemas, settings_of
from fsae.configuration.values import lenient_node
from fsae.language_models.settings import ModelSettings

register_schemas()
register_resolvers()


def composed_settings(overrides: Sequence[str], values: Mapping[str, Any]) -> RunSettings:
    """Compose the settings that a command with these overrides would have.

    Args:
        overrides: as on the command line, such as "arch=topk" or "trainer.lr=1e-3".
        values: settings by dotted key, such as {"arch.k": 32}; they replace what the overrides say.

    Raises:
        ValueError: no such choice, no such setting, or a value that it cannot have.
    """
    try:
        check_choices(overrides)
        config = _composed(overrides)
        for key, value in values.items():
            OmegaConf.update(config, key, value)
        return settings_of(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from error


def config_of(settings: RunSettings) -> DictConfig:
    """Return the config of settings, as composition would give it."""
    return OmegaConf.create({each.name: _as_node(getattr(settings, each.name)) for each in fields(settings)})


def model_settings(name_or_path: str) -> ModelSettings:
    """Return the settings of a choice of `model=`, or of any model by a folder or its name on the hub.

    Raises:
        ValueError: an empty name.
    """
    choices = {path.stem: path for path in (conf_folder() / "model").glob("*.yaml")}
    # That one stands for any model, and asks for its path.
    choices.pop("custom")
    if name_or_path not in choices:
        return ModelSettings(path=name_or_path)
    node, values = lenient_node(ModelSettings), OmegaConf.load(choices[name_or_path])
    assert isinstance(values, DictConfig)
    del values["defaults"]
    node.merge_with(values)
    settings = OmegaConf.to_object(node)
    assert isinstance(settings, ModelSettings)
    return settings


def _as_node(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_node(each) for key, each in value.items()}
    return OmegaConf.structured(value) if is_dataclass(value) else value


def _composed(overrides: Sequence[str]) -> DictConfig:
    # The caller may be a Hydra program itself, which has the one instance that there may be.
    callers = get_gh_backup()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            config = compose("config", overrides=list(overrides))
    finally:
        restore_gh_from_backup(callers)
    with open_dict(config):
        config.pop("hydra", None)
    return config

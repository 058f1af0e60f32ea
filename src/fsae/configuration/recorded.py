"""Settings as a run's folder keeps them: written from settings objects, and read back into them."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fsae.configuration.accept import Origin
from fsae.configuration.resolvers import deciding_settings, flat_settings
from fsae.configuration.schema import RunSettings, Task, schemas, settings_of
from fsae.configuration.values import lenient_node
from fsae.outputs.run_folder import RunFolder
from fsae.tracking.mlflow_upload import read_description


def origin_of(settings: RunSettings, folder: Path, overrides: Sequence[str]) -> Origin:
    """Return what a run with these settings writes down of them.

    Args:
        settings: of the run, wherever they came from.
        folder: the run's own.
        overrides: what differs from the defaults, in the command line's words.
    """
    nodes = {each.name: _as_node(getattr(settings, each.name)) for each in fields(settings)}
    config = OmegaConf.create(nodes)
    return Origin(
        folder=folder,
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(config))),
        overrides=overrides,
        deciding=deciding_settings(config),
        flat=flat_settings(config),
    )


def _as_node(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_node(each) for key, each in value.items()}
    return OmegaConf.structured(value) if is_dataclass(value) else value


def recorded_settings(folder: Path) -> RunSettings:
    """Read the settings that a run wrote into its folder.

    Raises:
        ValueError: a file is missing or damaged, or another version of fsae wrote settings that this one lacks.
    """
    path = RunFolder(folder).config
    words = read_description(folder).params
    try:
        written = OmegaConf.load(path)
        assert isinstance(written, DictConfig)
        values = {each.name: _typed(each.name, written[each.name], words) for each in fields(RunSettings)}
        return settings_of(OmegaConf.create(values | {"task": Task[written["task"]]}))
    except (OSError, YAMLError, OmegaConfBaseException, AssertionError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} does not hold the settings of a run as this version of fsae knows them ({reason}); read it as "
            "plain YAML, or use the version that wrote it"
        ) from error


def _typed(key: str, value: Any, words: Mapping[str, str]) -> Any:
    """Return a node of the schema that the settings at a key have, filled with what was written there."""
    if not isinstance(value, DictConfig):
        return value
    group = key.partition(".")[0]
    of_group = [name for name in schemas() if name.startswith(f"{group}/")]
    # Groups of one schema have no word of their own.
    name = of_group[0] if len(of_group) == 1 else f"{group}/{words.get(key)}"
    if name not in schemas():
        return {child: _typed(f"{key}.{child}", value[child], words) for child in value}
    node = lenient_node(schemas()[name])
    node.merge_with(value)
    return node

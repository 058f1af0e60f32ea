"""Configs as the command line composes them, in this process, in half of the time."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf, open_dict

from fsae.configuration.conf_folder import conf_folder
from fsae.configuration.resolvers import register_resolvers
from fsae.configuration.schema import register_schemas

register_schemas()
register_resolvers()


def _parse_once(source: type[ConfigSource], changed_at: Callable[[ConfigSource, str], object]) -> None:
    """Let one of Hydra's sources of YAML files parse a file again only if it has changed, and not for each config."""
    load, parsed = source.load_config, {}

    def load_config(self: ConfigSource, config_path: str) -> ConfigResult:
        key = self.provider, self.path, config_path, changed_at(self, config_path)
        if key not in parsed:
            parsed[key] = load(self, config_path)
        # Hydra takes the defaults list out of what it gets.
        return copy.deepcopy(parsed[key])

    source.load_config = load_config


def _resolve_only_interpolations() -> None:
    """Let Hydra tabulate what a defaults list may refer to only for a file that refers to something: one of sixty."""
    make = defaults_list._create_interpolation_map

    def make_if_needed(overrides: Any, defaults: list, self_added: bool) -> Any:
        used = any(each.is_interpolation() for each in defaults if not each.is_override())
        return make(overrides, defaults, self_added) if used else None

    defaults_list._create_interpolation_map = make_if_needed


def _modified(source: ConfigSource, config_path: str) -> object:
    file = Path(source.path, source._normalize_file_name(config_path))
    return (file.stat().st_mtime_ns, file.stat().st_size) if file.exists() else None


# Thousands of tests compose a config. Hydra finds the sources of files and of packages while it looks for plugins.
Plugins.instance()
_parse_once(SourcesRegistry.instance().resolve("file"), _modified)
_parse_once(SourcesRegistry.instance().resolve("pkg"), lambda source, config_path: None)
_resolve_only_interpolations()

# A folder of YAML files that a user's `--config-dir` names is put on the search path in this way.
SEARCH_PATH = "hydra.searchpath=[file://{}]"


def composed(*overrides: str, own: Path | None = None) -> DictConfig:
    """The config that a run gets; `own` is a folder of further YAML files."""
    return without_hydra(composed_with_hydra(*overrides, own=own))


def composed_with_hydra(*overrides: str, own: Path | None = None) -> DictConfig:
    """The same, with Hydra's own settings."""
    search = [SEARCH_PATH.format(own)] if own else []
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides=[*search, *overrides], return_hydra_config=True)


def without_hydra(config: DictConfig) -> DictConfig:
    """Remove Hydra's own settings from a config, and return it."""
    with open_dict(config):
        del config["hydra"]
    return config


def run_folder(*overrides: str) -> Path:
    """The folder that a single run with these overrides is given."""
    config = composed_with_hydra(*overrides)
    return Path(OmegaConf.select(config, "hydra.run.dir"))

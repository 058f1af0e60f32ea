"""Configs as the command line composes them, in this process."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from fsae.configuration.conf_folder import conf_folder
from fsae.configuration.resolvers import register_resolvers
from fsae.configuration.schema import register_schemas

register_schemas()
register_resolvers()

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

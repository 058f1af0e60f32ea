"""Values that YAML computes: absolute paths, and the name of a run's folder."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from functools import cache
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsae.configuration.schema import TABLES, schemas
from fsae.files import digest_of
from fsae.language_models.hub import is_hub_name
from fsae.language_models.settings import ModelSettings
from fsae.outputs.bookkeeping import is_bookkeeping
from fsae.sources.documents import DatasetSettings


@cache
def choice_names() -> dict[type, str]:
    """Return the name by which YAML files choose each schema of a group that has several."""
    return {schema: path.split("/")[1] for path, schema in schemas().items() if path.split("/")[0] in TABLES}


def register_resolvers() -> None:
    """Register `absolute` and `run_folder` with OmegaConf."""
    OmegaConf.register_new_resolver("absolute", _absolute, replace=True)
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True, use_cache=False)


def _absolute(path: str) -> str:
    # Path("") would be the working directory: `check_outputs` refuses an empty path.
    return str(Path(path).expanduser().resolve()) if path.strip() else ""


def flat_settings(config: DictConfig) -> dict[str, str]:
    """Return all resolved settings except Hydra's own, flattened: text by dotted key.

    Architectures, trainers, sources, evaluations and loss terms also differ by their schema, so the choice's name is
    listed under their own key: `arch` is "gated", `loss.sparsity` is "l1". The names of a model and a data set,
    which follow from their settings, are listed as `model.name` and `dataset.name`.
    """
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        kind = OmegaConf.get_type(value) if isinstance(value, DictConfig) else None
        # A choice without settings of its own has its name only.
        if isinstance(value, DictConfig) and (value or kind in choice_names()):
            if kind is not None and (word := choice_names().get(kind)):
                flat[prefix] = word
            if kind in (ModelSettings, DatasetSettings):
                # Invalid settings have no name; later checks report what is wrong with them.
                with suppress(ValueError, OmegaConfBaseException):
                    flat[f"{prefix}.name"] = cast(ModelSettings | DatasetSettings, OmegaConf.to_object(value)).name
            for key in value:
                # Later checks report a missing value, with a better message than OmegaConf's.
                walk(f"{prefix}.{key}", "???" if OmegaConf.is_missing(value, key) else value[key])
        else:
            value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            value = value.name if isinstance(value, Enum) else value
            flat[prefix] = value if isinstance(value, str) else json.dumps(value, default=str)

    for group in config:
        if group != "hydra":
            walk(str(group), config[group])
    flat.setdefault("loss.penalty", "none")
    return flat | absolute_paths(config)


def absolute_paths(config: DictConfig) -> dict[str, str]:
    """Return the settings that name files by a path, made absolute, so that they do not depend on the directory.

    A hub name is not changed, unless there is a folder of that name here, which would then be read.
    """
    found: dict[str, str] = {}
    of_model = ("model.path", "model.tokenizer", "layout.model.path", "layout.model.tokenizer")
    for key in (*of_model, "dataset.path", "source.path", "sae.path", "arch.warm_start"):
        path = OmegaConf.select(config, key, throw_on_missing=False)
        if isinstance(path, str) and path and (not is_hub_name(path) or Path(path).exists()):
            found[key] = os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - links stay links
    return found


def deciding_settings(config: DictConfig) -> dict[str, str]:
    """Return those of `flat_settings` that decide a run's numbers."""
    return {key: value for key, value in flat_settings(config).items() if not is_bookkeeping(key)}


def _run_folder(*, _root_: DictConfig) -> str:
    """Return the name of the run's folder, the same for the same settings.

    If that folder holds a finished run the next free number is appended, so that nothing finished is overwritten.
    """
    deciding = deciding_settings(_root_)
    digest = digest_of(deciding)
    # Taken from the flat text: a YAML file without its schema is refused later, with a better message.
    if {"model.name", "site.name", "site.layer"} <= deciding.keys():
        models = [deciding[key] for key in ("model.name", "layout.model.name") if key in deciding]
        vectors = f"{'_'.join(models)}-{_sites(deciding)}"
    else:
        vectors = _root_.hydra.runtime.choices.source
    if deciding["task"] == "eval":
        # The evaluated architecture is recorded in the autoencoder's folder, not in these settings.
        name = f"eval-{_root_.name or vectors}"
    elif deciding["task"] == "harvest":
        name = f"harvest-{_root_.name or vectors}"
    else:
        arch = _root_.hydra.runtime.choices.arch.replace("/", "_")
        penalty = "no_penalty" if deciding["loss.penalty"] == "none" else deciding["loss.penalty"]
        frozen = deciding.get("trainer.frozen", "none")
        control = "" if frozen == "none" else f"-frozen_{frozen}"
        name = _root_.name or f"{vectors}-{arch}-{penalty}{control}"
    runs = Path(_root_.paths.runs)
    folder, number = f"{name}-{digest}", 1
    while _finished(runs / folder):
        number += 1
        folder = f"{name}-{digest}-{number}"
    return folder


def _sites(deciding: Mapping[str, str]) -> str:
    """Return the sites of a run as a part of its name: resid_mid.3, mlp_in.3-mlp_out, resid_mid.3_6_9."""
    layers = json.loads(deciding.get("layout.layers", "[]")) or [deciding["site.layer"]]
    head = deciding.get("site.head", "null")
    read = f"{deciding['site.name']}.{'_'.join(map(str, layers))}{'' if head == 'null' else f'.{head}'}"
    target = deciding.get("layout.target", "null")
    written = "" if target == "null" else f"-{target}"
    latents = deciding.get("layout.latents", "shared")
    of_layers = "" if latents == "shared" else f"-{latents}"
    kind = "".join(f"-{flag}" for flag in ("pair", "skip") if deciding.get(f"layout.{flag}") == "true")
    return f"{read}{written}{of_layers}{kind}"


def _finished(folder: Path) -> bool:
    try:
        return json.loads((folder / "status.json").read_text())["state"] == "finished"
    except (OSError, ValueError, KeyError):
        return False

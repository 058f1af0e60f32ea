"""Values that YAML computes: absolute paths, and the name of a run's folder."""

import json
import os
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsae.configuration.schema import SCHEMAS
from fsae.files import digest_of
from fsae.language_models.hub import is_hub_name
from fsae.language_models.settings import ModelSettings
from fsae.sources.documents import DatasetSettings

# What does not change the numbers of a run: it neither names its folder nor makes a checkpoint foreign.
BESIDE_THE_POINT = (
    "paths",
    "tracking",
    "search",
    "source.cache",
    "source.cache_gb",
    "source.also",
    "source.worker",
    "trainer.checkpoint_seconds",
)

# Schemas of which several fit one place, and the word by which YAML chooses between them.
CHOICES = {
    schema: path.split("/")[1]
    for path, schema in SCHEMAS.items()
    if path.startswith(("arch/", "loss/", "source/", "trainer/"))
}


def register_resolvers() -> None:
    """Make `absolute` and `run_folder` known to OmegaConf."""
    OmegaConf.register_new_resolver("absolute", _absolute, replace=True)
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True, use_cache=False)


def _absolute(path: str) -> str:
    # Path("") would be the working directory: `check_outputs` tells it.
    return str(Path(path).expanduser().resolve()) if path.strip() else ""


def flat_settings(config: DictConfig) -> dict[str, str]:
    """All resolved settings but Hydra's own, flattened: text by dotted key.

    Architectures, trainers and loss terms differ by their schema too, so its word stands under their own key: `arch` is
    "gated", `loss.sparsity` is "l1". What a model and a data set are called follows from their settings; it stands
    among them as `model.name` and `dataset.name`.
    """
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, DictConfig) and value:
            kind = OmegaConf.get_type(value)
            if kind is not None and (word := CHOICES.get(kind)):
                flat[prefix] = word
            if kind in (ModelSettings, DatasetSettings):
                # Settings that cannot be have no name; the checks that follow say what is wrong with them.
                with suppress(ValueError, OmegaConfBaseException):
                    flat[f"{prefix}.name"] = cast(ModelSettings | DatasetSettings, OmegaConf.to_object(value)).name
            for key in value:
                # What is missing is told by the checks that follow, better than OmegaConf tells it here.
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
    """Settings that name files by a path, made absolute: a path means the same wherever the command is given again.

    A hub name stays as it is, unless a folder of that name is here: that is what would be read.
    """
    found: dict[str, str] = {}
    for key in ("model.path", "model.tokenizer", "dataset.path", "source.path", "sae.path"):
        path = OmegaConf.select(config, key, throw_on_missing=False)
        if isinstance(path, str) and path and (not is_hub_name(path) or Path(path).exists()):
            found[key] = os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - links stay links
    return found


def deciding_settings(config: DictConfig) -> dict[str, str]:
    """Those of `flat_settings` that decide a run's numbers."""
    beside = tuple(f"{key}." for key in BESIDE_THE_POINT)
    return {key: value for key, value in flat_settings(config).items() if not f"{key}.".startswith(beside)}


def _run_folder(*, _root_: DictConfig) -> str:
    """A name for the run's folder that the same settings find again.

    Where that folder holds a finished run the next free number is added, so that nothing finished is overwritten.
    """
    deciding = deciding_settings(_root_)
    digest = digest_of(deciding)
    # Read from the flat text: a YAML file without its schema is refused later, with a better message.
    if {"model.name", "site.name", "site.layer"} <= deciding.keys():
        vectors = f"{deciding['model.name']}-{deciding['site.name']}.{deciding['site.layer']}"
    else:
        vectors = _root_.hydra.runtime.choices.source
    if deciding["task"] == "eval":
        # Which architecture it evaluates is in the autoencoder's own folder, not in these settings.
        name = f"eval-{_root_.name or vectors}"
    elif deciding["task"] == "harvest":
        name = f"harvest-{_root_.name or vectors}"
    else:
        arch = _root_.hydra.runtime.choices.arch.replace("/", "_")
        penalty = deciding["loss.penalty"].replace("none", "no_penalty")
        name = _root_.name or f"{vectors}-{arch}-{penalty}"
    runs = Path(_root_.paths.runs)
    folder, number = f"{name}-{digest}", 1
    while _finished(runs / folder):
        number += 1
        folder = f"{name}-{digest}-{number}"
    return folder


def _finished(folder: Path) -> bool:
    try:
        return json.loads((folder / "status.json").read_text())["state"] == "finished"
    except (OSError, ValueError, KeyError):
        return False

"""Values that YAML computes: absolute paths, and the name of a run's folder."""

import hashlib
import json
from enum import Enum
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

# What does not change the numbers of a run: it neither names its folder nor makes a checkpoint foreign.
BESIDE_THE_POINT = ("paths", "tracking")


def register_resolvers() -> None:
    """Make `absolute` and `run_folder` known to OmegaConf."""
    OmegaConf.register_new_resolver("absolute", lambda path: str(Path(path).expanduser().resolve()), replace=True)
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True, use_cache=False)


def flat_settings(config: DictConfig) -> dict[str, str]:
    """All resolved settings but Hydra's own, flattened: text by dotted key."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        else:
            value = value.name if isinstance(value, Enum) else value
            flat[prefix] = value if isinstance(value, str) else json.dumps(value, default=str)

    for group in config:
        if group != "hydra":
            node = config[group]
            walk(str(group), OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
    return flat


def deciding_settings(config: DictConfig) -> dict[str, str]:
    """Those of `flat_settings` that decide a run's numbers."""
    return {key: value for key, value in flat_settings(config).items() if key.split(".")[0] not in BESIDE_THE_POINT}


def _run_folder(*, _root_: DictConfig) -> str:
    """A name for the run's folder that the same settings find again.

    Where that folder holds a finished run the next free number is added, so that nothing finished is overwritten.
    """
    deciding = deciding_settings(_root_)
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:8]
    # Read from the flat text: a YAML file without its schema is refused later, with a better message.
    site = f"{deciding['site.name']}.{deciding['site.layer']}"
    if deciding["task"] == "eval":
        # Which architecture it evaluates is in the autoencoder's own folder, not in these settings.
        name = f"eval-{_root_.name or deciding['model.name'] + '-' + site}"
    else:
        name = _root_.name or f"{deciding['model.name']}-{site}-{_root_.hydra.runtime.choices.arch}"
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

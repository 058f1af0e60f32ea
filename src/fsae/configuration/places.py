"""Where a command writes: below its outputs folder and nowhere else, found out before anything is made."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def check_outputs(config: DictConfig) -> None:
    """Raise ValueError where one of the composed config's `paths` cannot be used as a folder."""
    for name in ("outputs", "runs", "sweeps", "activations"):
        _check_text(str(config.paths[name]), f"paths.{name}")
    for name in ("runs", "sweeps"):
        _check_below(str(config.paths[name]), f"paths.{name}", config)


def check_folder(config: DictConfig, key: str) -> None:
    """Raise ValueError where the folder of a run (hydra.run.dir) or sweep (hydra.sweep.dir) is not below outputs."""
    folder = str(OmegaConf.select(config, key))
    _check_text(folder, key)
    _check_below(folder, key, config)


def outputs_named(arguments: list[str]) -> Path | None:
    """The outputs folder of a command whose settings cannot be composed; None where it names none that can be used."""
    given = [each.partition("=")[2].strip("'\"") for each in arguments if each.startswith("paths.outputs=")]
    text = given[-1] if given else os.environ.get("FSAE_OUTPUTS", "outputs")
    try:
        _check_text(text, "paths.outputs")
    except ValueError:
        return None
    return Path(text)


def _check_text(text: str, key: str) -> None:
    said = f"{key} is {text!r}"
    if not text.strip():
        raise ValueError(f"{said}: name a folder" + (" (or FSAE_OUTPUTS is empty)" if key == "paths.outputs" else ""))
    if not text.isprintable():
        raise ValueError(f"{said}: a folder's name may have no line break and no other character that cannot be seen")
    if "${" in text:
        raise ValueError(f"{said}: a folder's name may not have ${{, by which settings refer to others")
    if text.startswith("~"):
        raise ValueError(f"{said}: ~ is only known to the shell; write $HOME, or the whole path")


def _check_below(text: str, key: str, config: DictConfig) -> None:
    outputs = Path(config.paths.outputs).resolve()
    if outputs not in Path(text).resolve().parents:
        raise ValueError(
            f"{key} is {text!r}, which is not below the outputs folder {outputs}; leave {key} out, or choose another "
            "outputs folder by paths.outputs"
        )

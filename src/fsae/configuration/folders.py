"""Checks of the folders that a command writes to, before anything is created: all lie below its outputs folder.

Only activation stores may lie elsewhere (paths.activations), such as on a scratch disk: they are large.
"""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


def check_outputs(config: DictConfig) -> None:
    """Raise ValueError if one of the composed config's `paths` cannot be used as a folder."""
    for name in ("outputs", "runs", "sweeps", "activations"):
        _check_text(str(config.paths[name]), f"paths.{name}")
    for name in ("runs", "sweeps"):
        _check_below(str(config.paths[name]), f"paths.{name}", config)


def check_folder(config: DictConfig, key: str) -> None:
    """Check a run's folder (hydra.run.dir) or a sweep's (hydra.sweep.dir), and Hydra's own files.

    Raises:
        ValueError: the folder is not below the outputs folder, or Hydra would write elsewhere.
    """
    folder = str(OmegaConf.select(config, key))
    _check_text(folder, key)
    _check_below(folder, key, config)
    hydra = config.hydra
    if hydra.output_subdir is not None:
        raise ValueError(
            f"hydra.output_subdir is {hydra.output_subdir!r}, but a run writes its settings itself; leave it out"
        )
    if "/" in hydra.job.name:
        raise ValueError(f"hydra.job.name is {hydra.job.name!r}; it names a file, so it may contain no slash")
    written: Any = OmegaConf.to_container(hydra.job_logging or {})
    for name, handler in (written.get("handlers") or {}).items():
        if "filename" in handler:
            # Hydra sets the folder only when the run starts.
            file = handler["filename"].replace("${hydra.runtime.output_dir}", folder)
            file_key = f"hydra.job_logging.handlers.{name}.filename"
            _check_text(file := file.replace("${hydra.job.name}", hydra.job.name), file_key)
            _check_below(file, file_key, config)


def outputs_folder_of(arguments: list[str]) -> Path | None:
    """Return the outputs folder of a command whose settings cannot be composed; None if it names no usable one."""
    given = [each.partition("=")[2].strip("'\"") for each in arguments if each.startswith("paths.outputs=")]
    text = given[-1] if given else os.environ.get("FSAE_OUTPUTS", "outputs")
    try:
        _check_text(text, "paths.outputs")
    except ValueError:
        return None
    return Path(text)


def _check_text(text: str, key: str) -> None:
    found = f"{key} is {text!r}"
    if not text.strip():
        raise ValueError(f"{found}: name a folder" + (" (or FSAE_OUTPUTS is empty)" if key == "paths.outputs" else ""))
    if not text.isprintable():
        raise ValueError(f"{found}: a folder's name may contain no line break and no other unprintable character")
    if "${" in text:
        raise ValueError(f"{found}: a folder's name may not contain ${{, by which settings refer to others")
    if text.startswith("~"):
        raise ValueError(f"{found}: only the shell expands ~; write $HOME, or the whole path")


def _check_below(text: str, key: str, config: DictConfig) -> None:
    outputs = Path(config.paths.outputs).resolve()
    if outputs not in Path(text).resolve().parents:
        raise ValueError(
            f"{key} is {text!r}, which is not below the outputs folder {outputs}; leave {key} out, or choose another "
            "outputs folder with paths.outputs"
        )

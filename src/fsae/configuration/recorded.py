"""The settings in a run's folder: read back into settings objects, or into a config with other evaluations."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fsae.configuration.schema import RunSettings, Task, schemas, settings_of, typed_key
from fsae.configuration.values import lenient_node
from fsae.errors import first_line
from fsae.evaluation.suite_settings import SuiteSettings
from fsae.outputs.run_folder import RunFolder
from fsae.tracking.mlflow_upload import read_description

# Settings that an evaluation of a finished run does not take from its record.
_OTHERS = ("task", "eval", "suite")


def recorded_settings(folder: Path) -> RunSettings:
    """Return the settings of the run in a folder.

    Raises:
        ValueError: a file is missing or damaged, or another version of fsae wrote settings that this one lacks.
    """
    written = _written(folder)
    with _known(folder):
        groups = _typed_groups(folder, written, [each.name for each in fields(RunSettings) if each.name in written])
        return settings_of(OmegaConf.create(groups | {"task": Task[written["task"]]}))


def evaluated_dictionary(folder: Path) -> Path | None:
    """Return the folder of the dictionary that a run of task=eval evaluated; None for a run that trained its own.

    Raises:
        ValueError: the settings are damaged.
    """
    written = _written(folder)
    path = OmegaConf.select(written, "sae.path")
    return Path(str(path)).expanduser() if written.get("task") == Task.eval.name and path is not None else None


def recorded_evaluations(folder: Path) -> list[str]:
    """Return the names of the evaluations that a run lists and has been measured by.

    Raises:
        ValueError: the settings are damaged, or list none: the run was evaluated by an earlier version of fsae.
    """
    files = RunFolder(folder)
    names = [str(name) for name in _written(folder).get("eval") or {} if (files.evaluations / f"{name}.json").exists()]
    if not names:
        raise ValueError(f"{folder} does not name the run's evaluations; name them, as in eval=[vectors,splice]")
    return names


def recorded_outputs(folder: Path) -> str:
    """Return the outputs folder of a run.

    Raises:
        ValueError: the settings are damaged.
    """
    return str(_written(folder).paths.outputs)


def with_evaluations_of(config: DictConfig, folder: Path, overrides: Sequence[str]) -> DictConfig:
    """Return the config of the run in a folder, with the task and the evaluations of another config.

    The sizes of these evaluations and of the suite are the run's own, unless the overrides give them: each by itself,
    or by the size of the suite that it refers to.

    Args:
        config: composed for the evaluation.
        folder: the run's folder.
        overrides: the overrides from which `config` was composed.

    Raises:
        ValueError: a file is missing or damaged, or another version of fsae wrote settings that this one lacks.
    """
    written = _written(folder)
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    if "suite" in given:
        given |= {f"suite.{each.name}" for each in fields(SuiteSettings)}
    with _known(folder):
        own = _typed_groups(folder, written, [str(name) for name in written if name not in _OTHERS])
        again = OmegaConf.create(own | {str(name): config[name] for name in config if name not in own})
        sizes = {"suite": written.get("suite") or {}}
        sizes |= {f"eval.{name}": each for name, each in (written.get("eval") or {}).items() if name in config.eval}
        kept = {
            f"{group}.{key}": value
            for group, values in sizes.items()
            for key, value in values.items()
            if given.isdisjoint({f"{group}.{key}", typed_key(OmegaConf.select(again, group), key, f"{group}.{key}")})
        }
        for key, value in kept.items():
            OmegaConf.update(again, key, value)
    return again


def _typed_groups(folder: Path, written: DictConfig, names: Sequence[str]) -> dict[str, Any]:
    """Return the settings at the root's keys, as nodes of their schemas."""
    words = read_description(folder).params
    return {name: _typed(name, written[name], words) for name in names}


def _typed(key: str, value: Any, words: Mapping[str, str]) -> Any:
    """Return a node of the schema that the settings at a key have, filled with the value that was written there."""
    if not isinstance(value, DictConfig):
        return value
    group = key.partition(".")[0]
    of_group = [name for name in schemas() if name.startswith(f"{group}/")]
    # Groups of one schema have no word of their own; nor has a dictionary of loss terms or of evaluations.
    name = of_group[0] if len(of_group) == 1 else f"{group}/{words[key]}" if key in words else None
    if name is None:
        return {child: _typed(f"{key}.{child}", value[child], words) for child in value}
    if name not in schemas():
        raise ValueError(f"{key} is {words[key]}, and there is no such choice")
    node = lenient_node(schemas()[name])
    node.merge_with(value)
    return node


def _written(folder: Path) -> DictConfig:
    """Return the content of a run's `config.yaml`."""
    path = RunFolder(folder).config
    try:
        written = OmegaConf.load(path)
        if not isinstance(written, DictConfig) or not isinstance(OmegaConf.select(written, "paths.outputs"), str):
            raise ValueError("paths.outputs is missing")
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(
            f"{path} does not hold a run's settings ({first_line(error)}); it may be missing or cut off"
        ) from error
    return written


@contextmanager
def _known(folder: Path) -> Iterator[None]:
    """Raise ValueError for settings that this version of fsae does not know."""
    try:
        yield
    except (OmegaConfBaseException, KeyError, ValueError) as error:
        raise ValueError(
            f"{RunFolder(folder).config} has other settings than this version of fsae knows ({first_line(error)}); use "
            "the version that made the run"
        ) from error

"""The settings of a finished run that is evaluated again: those that it has, with another evaluation."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fsae.outputs.run_folder import RunFolder


def evaluations_of(folder: Path) -> list[str]:
    """Return the names of the evaluations that a run lists and has been measured by.

    Raises:
        ValueError: there are none: the run was evaluated by an earlier version of fsae.
    """
    files = RunFolder(folder)
    names = [str(name) for name in _saved(folder).get("eval") or {} if (files.evaluations / f"{name}.json").exists()]
    if not names:
        raise ValueError(f"{folder} does not name the run's evaluations; name them, as in eval=[vectors,splice]")
    return names


def outputs_of(folder: Path) -> str:
    """Return the outputs folder that a run was given."""
    saved = _saved(folder)
    try:
        return str(saved.paths.outputs)
    except (OmegaConfBaseException, AttributeError) as error:
        raise _damaged(folder, error) from None


def with_own_settings(config: DictConfig, folder: Path, overrides: Sequence[str]) -> DictConfig:
    """Return a run's config with the values of its own `config.yaml`, except for overrides of `eval` and `suite`.

    Args:
        config: composed from the run's choices: which schema each group has is not in `config.yaml`.
        folder: the run's folder.
        overrides: the job's overrides. Those of `eval` and `suite` replace the run's own ones of these groups.

    Raises:
        ValueError: the run has other settings than this version of fsae knows.
    """
    saved = _saved(folder)
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    config = config.copy()
    written = OmegaConf.to_container(config.eval, resolve=False)
    assert isinstance(written, dict)

    def is_given(key: str) -> bool:
        """Return whether the overrides give the value, or the size of the suite that it is taken from."""
        _, *path = key.split(".")
        value = written[path[0]][path[1]] if key.startswith("eval.") else f"${{{key}}}"
        taken_from = str(value).removeprefix("${").removesuffix("}")
        return not {key, taken_from, taken_from.partition(".")[0]}.isdisjoint(given)

    try:
        for group in saved:
            if group not in ("task", "eval", "suite"):
                OmegaConf.update(config, str(group), saved[group], merge=True)
        own = {f"suite.{key}": value for key, value in (saved.get("suite") or {}).items()}
        for name in config.eval.keys() & (saved.get("eval") or {}).keys():
            own |= {f"eval.{name}.{key}": value for key, value in saved.eval[name].items()}
        for key, value in own.items():
            if not is_given(key):
                OmegaConf.update(config, key, value)
    except OmegaConfBaseException as error:
        raise ValueError(
            f"{RunFolder(folder).config} has a setting that this version of fsae does not know; evaluate the run with "
            f"the version that made it ({str(error).splitlines()[0]})"
        ) from error
    return config


def _saved(folder: Path) -> DictConfig:
    path = RunFolder(folder).config
    try:
        saved = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError) as error:
        raise _damaged(folder, error) from None
    if not isinstance(saved, DictConfig) or not {"paths", "source"} <= saved.keys():
        raise _damaged(folder, "paths or source is missing")
    return saved


def _damaged(folder: Path, reason: object) -> ValueError:
    first = (str(reason).splitlines() or [type(reason).__name__])[0]
    path = RunFolder(folder).config
    return ValueError(f"{path} does not hold a run's settings ({first}); it may be missing or cut off")

"""The command line's overrides: ordered for Hydra, and checked if Hydra's own message would not name the override."""

import re
from collections.abc import Sequence
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from fsae.configuration.conf_folder import choices_of, conf_folder
from fsae.configuration.schema import NO_EVALUATION, RunSettings

# The choice of `eval` that stands for all evaluations that need neither a hub nor a judge.
SUITE = "suite"
# Options without a value: the argument after one of them is an argument of its own.
_FLAGS = {"-m", "--multirun", "-r", "--run", "--resolve"}


def options_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the overrides last, so that `debug=tiny -m seed=1,2` works.

    argparse takes overrides in one piece: it does not recognise those that follow an option after other overrides.
    """
    options, overrides = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        of_option = before.startswith("-") and before not in _FLAGS and "=" not in before
        is_override = not argument.startswith("-") and ("=" in argument or argument.startswith("~"))
        (overrides if is_override and not of_option else options).append(argument)
    return [*options, *overrides]


def with_lists(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with lists of layers and of models, as in `site.layer=[3,6,9]`, as settings of the layout.

    A list of two models alone is of the one layer of `site.layer`.
    """
    of_layers = [re.sub(r"^site\.layer=(?=\[)", "layout.layers=", argument) for argument in arguments]
    found = list[str]()
    for argument in of_layers:
        models = re.fullmatch(r"model=\[ *([^][,]+?) *, *([^][,]+?) *\]", argument)
        if models is None:
            found.append(argument)
            continue
        found += [f"model={models[1]}", f"+model@layout.model={models[2]}"]
        if not any(each.startswith("layout.layers=") for each in of_layers):
            found.append("layout.layers=[]")
    return found


def with_one_config_dir(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the first `--config-dir` alone, and the others in `hydra.searchpath`.

    Hydra would use the last `--config-dir` and ignore the others without a message.

    Raises:
        ValueError: one of several folders does not exist, or `hydra.searchpath` is not a list of folders.
    """
    folders, rest = list[Path](), list[str]()
    words = iter(arguments)
    for word in words:
        option, given, folder = word.partition("=")
        if option not in ("--config-dir", "-cd"):
            rest.append(word)
        elif (folder := folder if given else next(words, "")) != "":
            folders.append(Path(folder).absolute())
        else:
            # Hydra reports that the folder is missing.
            return list(arguments)
    if len(folders) < 2:
        return list(arguments)
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"--config-dir={folder}: there is no such folder")
    searched = [word for word in rest if word.startswith("hydra.searchpath=")]
    further = [f"file://{folder}" for folder in folders[1:]]
    for override in OverridesParser.create().parse_overrides(searched):
        entries = override.value()
        if not isinstance(entries, list):
            raise ValueError(f"{override.input_line}: it must be a list, as in hydra.searchpath=[file:///FOLDER]")
        further += [str(each) for each in entries]
    kept = [word for word in rest if word not in searched]
    listed = ",".join(map(quoted, dict.fromkeys(further)))
    return [f"--config-dir={folders[0]}", *kept, f"hydra.searchpath=[{listed}]"]


def quoted(path: object) -> str:
    """Return a path as a value of an override, whatever its characters.

    A backslash counts before quotation marks only.
    """
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), str(path)) + "'"


def named_evaluations(overrides: Sequence[str]) -> frozenset[str]:
    """Return the choices that the last `eval=...` lists; none if there is none."""
    lists = [each.partition("=")[2] for each in overrides if each.startswith("eval=")]
    return frozenset(name.strip() for name in lists[-1].strip("[]").split(",")) if lists else frozenset()


def check_choices(arguments: Sequence[str]) -> None:
    """Check the choices of config groups, since Hydra's message would not name the argument.

    Raises:
        ValueError: an argument gives a group something other than a choice, or removes a group that every run needs,
            or lists no evaluation or one twice.
    """
    needed = {each.name for each in fields(RunSettings)} - {"model", "site", "dataset"}
    for argument in arguments:
        key = argument.removeprefix("~").partition("=")[0]
        if argument.startswith("~") and key in needed:
            raise ValueError(
                f"{argument}: a run needs {key}; leave out {argument}, or give it another value by {key}=..."
            )
    groups = {path.name for path in conf_folder().iterdir() if path.is_dir()}
    for argument in arguments:
        key = argument.partition("=")[0]
        if key.startswith("+") and key.lstrip("+") in groups:
            raise ValueError(f"{argument}: a choice of {key.lstrip('+')} has no +; leave it out")
        if argument.startswith(("-", "~")) or key not in groups:
            continue
        if key == "model" and "[" in argument:
            raise ValueError(
                f"{argument}: a crosscoder is over two models, as in model=[gpt2,custom]; a sweep over the second one "
                "is model=gpt2 +model@layout.model=custom,pythia70m layout.layers=[]"
            )
        try:
            override = OverridesParser.create().parse_override(argument)
        except HydraException:
            continue  # Hydra reports it, with the position of the mistake
        if override.is_sweep_override():
            continue
        chosen = override.value()
        words = chosen if isinstance(chosen, list) else [chosen]
        if key == "eval" and not words:
            raise ValueError(NO_EVALUATION)
        if not words or not all(isinstance(word, str) for word in words):
            value = argument.partition("=")[2]
            raise ValueError(f"{argument}: {value} is no choice of {key}; it has: {', '.join(choices_of(key))}")
        twice = [word for word in words if words.count(word) > 1]
        if twice:
            raise ValueError(f"{argument}: {twice[0]} is listed twice; leave one out")


def check_single(overrides: Sequence[str]) -> None:
    """Check that overrides of settings that cannot be swept over have one value each.

    Raises:
        ValueError: one has several.
        HydraException: one cannot be read.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not override.is_sweep_override():
            continue
        if override.key_or_group == "eval":
            raise ValueError(f"{override.input_line}: several evaluations are a list, as in eval=[vectors,splice]")
        raise ValueError(f"{override.input_line} has several values; give it one")


def check_jobs(config: DictConfig, most: int) -> None:
    """Check that a sweep has no more jobs than is plausible.

    Args:
        config: the sweep's config, with Hydra's own settings.
        most: the largest number of jobs allowed.

    Raises:
        ValueError: it has more.
    """
    sweeper = config.hydra.sweeper
    if config.hydra.mode is not RunMode.MULTIRUN or not str(sweeper._target_).endswith("BasicSweeper"):
        return
    written = [*(f"{key}={value}" for key, value in (sweeper.params or {}).items()), *config.hydra.overrides.task]
    # The command line's parameters replace the YAML file's.
    counts = {each.key_or_group: (each, _choices(each)) for each in OverridesParser.create().parse_overrides(written)}
    jobs = prod(count for _, count in counts.values())
    if jobs > most:
        largest, _ = max(counts.values(), key=lambda found: found[1])
        raise ValueError(
            f"{largest.input_line}: this sweep has {jobs:,} jobs, and at most {most:,} are started at a time; sweep "
            f"over less, or allow more by hydra.callbacks.sweep.max_jobs={jobs}"
        )


def _choices(override: Override) -> int:
    """Return how many values the override sweeps over, without creating all of them."""
    if not override.is_sweep_override():
        return 1
    swept: Any = override.value()
    if isinstance(swept, RangeSweep):
        assert swept.start is not None
        assert swept.stop is not None
        return max(1, int((swept.stop - swept.start) / swept.step))
    # The number of a glob's values is unknown before Hydra resolves it.
    return len(getattr(swept, "list", None) or [None])

"""Refusals: one message for settings that cannot be composed, recorded although there is no run to record it in."""

import difflib
import logging
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from fsae.configuration.conf_folder import choices_of, conf_folder
from fsae.configuration.schema import CHOSEN_INSTEAD, INSTEAD, schemas
from fsae.credentials import concealed
from fsae.errors import first_line
from fsae.outputs.status import Failure, RunState, mark, read_status

log = logging.getLogger(__name__)

# Errors that people can correct: reported without a traceback.
MENDABLE = (ValueError, OSError, HydraException, OmegaConfBaseException, YAMLError)
_REPORTED = "(reported in the run's log)"


def explain(error: BaseException) -> str:
    """Return what is wrong, where, and what would be right; without a traceback.

    Hydra's error names the override, and OmegaConf's, its cause, describes the mistake.
    """
    for cause in _causes(error):
        if isinstance(cause, OverrideParseException):
            return f"{cause.override}: not an override Hydra can read ({first_line(cause)}); as in trainer.lr=1e-3"
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            return _unknown_choice(cause)
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
            return _unknown_key(cause)
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            line = first_line(cause)
            if (gone := re.search(r"(?:Missing mandatory value: |Interpolation key ')([\w.]+)", line)) is not None:
                return f"{gone[1]} is not set, and a run needs it; add {gone[1]}=..., or leave out ~{gone[1]}"
            if "is not a ListConfig" in line:
                return f"{cause.full_key}: it must be a list, as in {cause.full_key}=[...]"
            if line.endswith("does not support deletion"):
                return f"{cause.full_key}: a setting cannot be deleted; give it a value, null where it may be null"
            return f"{cause.full_key}: {'it must not be null' if line.endswith('is not Optional') else line}"
    return _of_hydra(str(error).strip())


def included_itself(arguments: Sequence[str]) -> ValueError:
    """Return the error that explains Hydra's endless recursion through a defaults list."""
    chosen = [each for each in arguments if each.lstrip("+").startswith("experiment=")]
    files = " and ".join(f"{each.partition('=')[2]}.yaml" for each in chosen) or "a chosen YAML file"
    return ValueError(
        f"{', '.join(chosen) or 'the choices'}: the defaults list of {files} includes itself, directly or by way of "
        "another file; take that line out of it"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _of_hydra(text: str) -> str:
    """Return one sentence for messages in which Hydra uses several lines or internal names; other text unchanged."""
    if (swept := re.match(r"Ambiguous value for argument '(.*)'\n|Sweep parameters '(.*)' requires", text)) is not None:
        override = swept[1] or swept[2]
        if override.startswith("eval="):
            return f"{override}: several evaluations are a list, as in eval=[{override.removeprefix('eval=')}]"
        return f"{override}: several values are a sweep; add -m"
    if (there := re.match(r"Could not append to config\. An item is already at '(.*)'\.", text)) is not None:
        return f"+{there[1]}: this setting exists already; leave out the +"
    in_file = re.match(r"In '(?P<file>.+)': \w+ raised while composing config:\n(?P<what>.*)\n", text)
    full_key = re.search(r"^ *full_key: (\S+)", text, re.MULTILINE)
    if in_file is None or full_key is None:
        return text
    file, key = in_file["file"], full_key[1]
    kind = re.fullmatch(r"Key '.*' (?:is )?not in '(\w+)'", in_file["what"])
    if kind is None:
        return f"{file}.yaml: {key}: {in_file['what']}"
    schema = next((schema for schema in schemas().values() if schema.__name__ == kind[1]), None)
    near = _near(key.rpartition(".")[2], [each.name for each in fields(schema)] if schema is not None else [])
    group, choice = _group_and_choice(file)
    other = key.partition(".")[0]
    own = group in ("", other) or "." not in key
    leave = f"leave out that line{near}" if own else f"leave out {group}={choice}, or choose another {other}"
    return f"{file}.yaml sets {key}, and {kind[1]} has no such setting; {leave}"


def _unknown_choice(error: MissingConfigException) -> str:
    group, choice = _group_and_choice(str(error.missing_cfg_file))
    # Hydra lists no choices in the group's subfolders, but those in the user's own folders too.
    options = sorted({*choices_of(group), *map(str, error.options or [])})
    if (instead := CHOSEN_INSTEAD.get(f"{group}={choice}") or _moved(group, choice, options)) is not None:
        return f"{group}={choice}: there is no such choice; {instead}"
    if (group, choice) == ("hydra/sweeper", "optuna"):
        return "hydra/sweeper=optuna: its sweeper is not installed; install the extra (pip install 'fsae[sweeps]')"
    rest = f"{group} has: {', '.join(options)}" if options else f"there is no choice of {group}"
    where = f"--config-dir=FOLDER adds choices of your own, here as FOLDER/{group}/{choice}.yaml"
    return f"{group}={choice}: there is no such choice{_near(choice, options)}\n{rest}; {where}"


def _group_and_choice(file: str) -> tuple[str, str]:
    """Return the group and the choice of a YAML file; a choice such as "fisher/repaired" includes its folder."""
    top, _, inner = file.partition("/")
    if inner and (conf_folder() / top).is_dir():
        return top, inner
    group, _, choice = file.rpartition("/")
    return group, choice


def _moved(group: str, choice: str, options: Iterable[str]) -> str | None:
    """Return the choice that moved into a folder, as "mfr_eeg" to "mfr/eeg" and "pam_mnist" to "splines/pam_mnist"."""
    found = [each for each in options if "/" in each and choice in (each.replace("/", "_"), each.partition("/")[2])]
    return f"it is {group}={found[0]}" if len(found) == 1 else None


def _unknown_key(error: OmegaConfBaseException) -> str:
    full_key = str(error.full_key)
    if full_key in INSTEAD:
        return f"{full_key}: there is no such setting; {INSTEAD[full_key]}"
    parent, _, key = full_key.rpartition(".")
    schema = next((schema for schema in schemas().values() if schema is error.object_type), None)
    known = sorted(field.name for field in fields(schema)) if schema is not None else _children(error)
    of = f" ({schema.__name__})" if schema is not None else ""
    prefix = f"{parent}." if parent else ""
    return (
        f"{full_key}: there is no such setting{_near(key, known, prefix)}\n"
        f"{parent or 'the root'}{of} has: {', '.join(known)}"
    )


def _near(word: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _children(error: OmegaConfBaseException) -> list[str]:
    node = error.parent_node
    return sorted(str(key) for key in node) if node is not None and hasattr(node, "keys") else []  # pyright: ignore[reportGeneralTypeIssues]


def report_error(error: BaseException, folder: Path) -> None:
    """Log the error that ended a job: in one message if people can correct it, else with the traceback.

    Reporting an error a second time does nothing, so every caller that catches it may report it.
    """
    if was_reported(error):
        return
    if isinstance(error, MENDABLE):
        log.error("%s", explain(error))
        # The traceback is for those who suspect a fault of fsae. The disk may be the cause, so writing may fail.
        with suppress(OSError), (folder / "run.log").open("a") as file:
            file.write(concealed("".join(traceback.format_exception(error))))
    else:
        log.error("", exc_info=error)
    error.add_note(_REPORTED)


def was_reported(error: BaseException) -> bool:
    """Return whether `report_error` has logged the error."""
    return _REPORTED in getattr(error, "__notes__", ())


def record_refusal(error: BaseException, outputs: Path, folder: Path | None = None) -> None:
    """Write the reason for refusing a command into a `status.json`.

    It is written into `folder` if that is an existing folder that holds no run yet, else into the outputs folder: the
    status that a run has written is kept, and a run that never started gets no folder.

    Raises:
        OSError: it cannot be written.
    """
    failure = Failure(kind=type(error).__name__, message=explain(error))
    if folder is not None and folder.is_dir() and _holds_no_run(folder):
        mark(folder, RunState.refused, failure)
        return
    outputs.mkdir(parents=True, exist_ok=True)
    mark(outputs, RunState.refused, failure)


def refuse(error: BaseException, outputs: Path | None) -> NoReturn:
    """Print why a command is refused and exit; nothing has started.

    Args:
        error: the reason.
        outputs: the folder in which the reason is recorded; None if the outputs folder itself is invalid.
    """
    print(f"fsae: {explain(error)}", file=sys.stderr)
    # The outputs folder may not be writable, which may be the reason itself.
    with suppress(OSError):
        if outputs is not None:
            record_refusal(error, outputs)
    sys.exit(1)


def _holds_no_run(folder: Path) -> bool:
    try:
        status = read_status(folder)
    except ValueError:
        return False
    return status is None or status.state is RunState.refused

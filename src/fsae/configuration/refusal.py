"""Settings that cannot be composed: said in one message, and recorded although there is no run to record it in."""

import difflib
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from fsae.configuration.schema import SCHEMAS


def explain(error: BaseException) -> str:
    """What is wrong, where, and what would be right; without a traceback."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigKeyError) and cause.full_key:
            return _unknown_key(cause)
        cause = cause.__cause__
    text = str(error).strip()
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {text.splitlines()[0]}"
    return text


def _unknown_key(error: ConfigKeyError) -> str:
    full_key = str(error.full_key)
    parent, _, key = full_key.rpartition(".")
    schema = next((schema for schema in SCHEMAS.values() if schema is error.object_type), None)
    known = sorted(schema.__dataclass_fields__) if schema is not None else _children(error)
    if not known:
        return str(error).strip()
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {f'{parent}.' if parent else ''}{near[0]}?" if near else ""
    of = f" ({schema.__name__})" if schema is not None else ""
    return f"{full_key}: there is no such setting{hint}\n{parent or 'the root'}{of} has: {', '.join(known)}"


def _children(error: ConfigKeyError) -> list[str]:
    node = error.parent_node
    return sorted(str(key) for key in node) if node is not None and hasattr(node, "keys") else []  # pyright: ignore[reportGeneralTypeIssues]


def record_refusal(message: str, kind: str) -> None:
    """Write `status.json` into the outputs folder: settings that do not compose have no run folder of their own."""
    outputs = Path(os.environ.get("FSAE_OUTPUTS", "outputs")).expanduser()
    outputs.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat()
    content = {"state": "refused", "ended": now, "failure": {"kind": kind, "message": message}}
    partial = outputs / "status.json.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(outputs / "status.json")

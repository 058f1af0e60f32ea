"""Files of settings from outside: JSON and YAML with one object."""

import json
from pathlib import Path
from typing import Any

from yaml import YAMLError, safe_load


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read; save or download it again") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); save or download it again") from error
    return _object(found, path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the object in a YAML file of plain values.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    try:
        found = safe_load(path.read_text(encoding="utf-8-sig"))
    except (YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); save or download it again") from None
    return _object(found, path)


def _object(found: object, path: Path) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not an object; save or download it again")
    return found

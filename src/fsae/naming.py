"""Names for folders and runs, made of paths and other text with any characters."""

import glob
import os
import re
from pathlib import Path

# The largest number of bytes of a name: two names and a digest fit into one folder's name.
_WORD_BYTES = 80


def word(text: str) -> str:
    """Replace characters that have a meaning in a path, a URI or a shell by underscores."""
    kept = re.sub(r"[^\w.+-]+", "_", text).lstrip(".-")
    return kept.encode()[:_WORD_BYTES].decode(errors="ignore") or "_"


def last_part(path: str) -> str:
    """Return the last part of the name of a folder, a file or a hub repository.

    For a glob, return its last folder without a wildcard and what follows.
    """
    # Not `resolve`: a link keeps its own name, which the user chose.
    parts = Path(os.path.abspath(Path(path).expanduser())).parts  # noqa: PTH100
    wildcards = [number for number, part in enumerate(parts) if glob.has_magic(part)]
    first = wildcards[0] - 1 if wildcards and not Path(path).expanduser().exists() else len(parts) - 1
    return word("/".join(parts[first:]))

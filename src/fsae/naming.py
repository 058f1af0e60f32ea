"""Words for folders' names, made of paths and other texts that may hold any character."""

import glob
import os
import re
from pathlib import Path

# The longest word, in bytes: two of them and a digest fit into one folder's name.
_WORD_BYTES = 80


def word(text: str) -> str:
    """The text without what means something in a path, a URI or a shell: underscores stand for it."""
    kept = re.sub(r"[^\w.+-]+", "_", text).lstrip(".-")
    return kept.encode()[:_WORD_BYTES].decode(errors="ignore") or "_"


def last_part(path: str) -> str:
    """The last part of a folder's, a file's or a hub repository's name, as a word.

    Of a glob it is the last folder without a wildcard and what follows.
    """
    # Not `resolve`: a link's own name is the one that was chosen.
    parts = Path(os.path.abspath(Path(path).expanduser())).parts  # noqa: PTH100
    wildcards = [number for number, part in enumerate(parts) if glob.has_magic(part)]
    first = wildcards[0] - 1 if wildcards and not Path(path).expanduser().exists() else len(parts) - 1
    return word("/".join(parts[first:]))

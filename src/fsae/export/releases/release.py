"""A release: a layout of files in which a project publishes its dictionaries."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fsae.export.stored import Stored


@dataclass(frozen=True)
class Release:
    """A layout of files, and how a dictionary in it is translated into the words of SAELens' format.

    Attributes:
        name: the project's.
        files: what the layout looks like, for messages.
        holds: whether a path is a dictionary in this layout, by the names of its files alone.
        read: returns the dictionary; only its settings are read at once.
    """

    name: str
    files: str
    holds: Callable[[Path], bool]
    read: Callable[[Path], Stored]


def in_path(path: Path) -> str:
    """Return the absolute path as a text with `/`, whose parts name what some releases keep in no file.

    The hub's cache writes `models--owner--name` for a repository.
    """
    return path.expanduser().absolute().as_posix().replace("models--", "").replace("--", "/")

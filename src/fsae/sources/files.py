"""Local files of a data set: which files there are, and whether they can be read."""

import glob
import logging
import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)


def files_at(path: str, endings: tuple[str, ...], kind: str) -> list[str]:
    """Return the files that a folder, a file or a glob stands for, resolved and sorted: the same on every machine.

    A folder is searched with all folders below it, including linked folders; hidden files are left out. A file is
    listed once, even if several links lead to it. Paths that are no regular files (a pipe, a socket) are left out with
    a warning.

    Args:
        path: a folder, a file or a glob.
        endings: the endings of names that a folder's files must have; empty for any name.
        kind: the name of the files in messages.

    Raises:
        ValueError: no file exists or matches, a link leads nowhere, permissions forbid reading a file or folder.
    """
    pattern = Path(path).expanduser()
    if glob.has_magic(str(pattern)) and not pattern.exists():
        found = [Path(name) for name in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207 - absolute
        found = [each for each in found if not each.is_dir()]
    elif pattern.is_dir():
        found = [each for each in files_below(pattern) if not endings or each.name.endswith(endings)]
    elif pattern.is_file():
        found = [pattern]
    elif pattern.exists():
        raise ValueError(f"dataset.path: {pattern} is neither a file nor a folder; correct the path")
    else:
        raise ValueError(
            f"dataset.path: there is no file or folder {pattern} (seen from {Path.cwd()}); correct the path"
        )
    files = sorted({str(each.resolve()) for each in found if _is_readable_file(each)})
    if not files:
        raise ValueError(f"dataset.path: {pattern} matches no {kind} file; correct the path")
    return files


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every path below a folder that is no folder, through links to other folders too, except hidden paths.

    Each folder is visited once, even if several links lead to it, so that a loop of links ends.

    Raises:
        ValueError: permissions forbid reading a folder.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"dataset.path: the folder {error.filename} cannot be read ({error.strerror}); "
            "change its permissions or name other files"
        )

    visited = set()
    for where, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        there = os.stat(where)  # noqa: PTH116 - os.walk's own
        if (there.st_dev, there.st_ino) in visited:
            folders.clear()
            continue
        visited.add((there.st_dev, there.st_ino))
        # Sorted, because only the first of several links to a folder is followed.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where) / name for name in sorted(names) if not name.startswith("."))


@cache
def standard_library() -> tuple[str, ...]:
    """Return the files of the running Python's standard library, sorted, without tests and installed packages."""
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    found = []
    for where, folders, names in os.walk(sysconfig.get_path("stdlib")):
        # Not even searched: installed packages may be many times as large.
        folders[:] = [name for name in folders if name not in left_out]
        found += [str(Path(where) / name) for name in names if name.endswith(".py")]
    return tuple(sorted(found))


def _is_readable_file(path: Path) -> bool:
    """Return whether a path is a regular file; raise ValueError if it is a dangling link or cannot be read."""
    if not path.exists():
        raise ValueError(
            f"dataset.path: {path} is a link that leads nowhere ({os.readlink(path)}); repair or remove it"  # noqa: PTH115
        )
    if not path.is_file():
        log.warning("dataset.path: %s is no regular file; it is left out", path)
        return False
    if not os.access(path, os.R_OK):
        raise ValueError(f"dataset.path: the file {path} may not be read; change its permissions or name other files")
    return True

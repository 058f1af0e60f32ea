"""The files of a data set on this machine: which ones there are, and whether they can be read."""

import glob
import logging
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)


def files_at(path: str, endings: tuple[str, ...], kind: str) -> list[str]:
    """The files that a folder, a file or a glob stands for, resolved and sorted: the same on every machine.

    A folder is searched with all folders below it, linked ones too; hidden files are left out. A file that several
    links lead to is listed once. What is no regular file (a pipe, a socket) is left out with a warning.

    Args:
        endings: of the names that a folder's files must have; none for any name.
        kind: what the files are called in messages.

    Raises:
        ValueError: nothing is there or nothing matches, a link leads nowhere, a file or folder may not be read.
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
    """Everything below a folder that is no folder, through links to other folders too, and nothing hidden.

    Each folder is visited once, however many links lead to it, so that a loop of links ends.

    Raises:
        ValueError: a folder may not be read.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"dataset.path: the folder {error.filename} cannot be read ({error.strerror}); mend it or name other files"
        )

    visited = set()
    for where, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        there = os.stat(where)  # noqa: PTH116 - os.walk's own
        if (there.st_dev, there.st_ino) in visited:
            folders.clear()
            continue
        visited.add((there.st_dev, there.st_ino))
        # Sorted, because the first of several links to a folder is the one that is followed.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where) / name for name in sorted(names) if not name.startswith("."))


def standard_library() -> list[str]:
    """The files of the running Python's standard library, sorted, without its tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    return sorted(str(path) for path in root.rglob("*.py") if not left_out & set(path.relative_to(root).parts))


def _is_readable_file(path: Path) -> bool:
    """Whether a path is a regular file; a ValueError if it is a link to nothing or may not be read."""
    if not path.exists():
        raise ValueError(
            f"dataset.path: {path} is a link that leads nowhere ({os.readlink(path)}); mend or remove it"  # noqa: PTH115
        )
    if not path.is_file():
        log.warning("dataset.path: %s is no regular file; it is left out", path)
        return False
    if not os.access(path, os.R_OK):
        raise ValueError(f"dataset.path: the file {path} may not be read; change its permissions or name other files")
    return True

"""Files that appear whole: written under a temporary name, flushed to the disk and renamed; JSON, and its digest."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Ends the name of every file and folder that is still being written.
UNFINISHED = ".partial"


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `path`; at the end of the block, flush its contents and rename it to `path`.

    A reader, or a process that starts after a kill, finds the old file or the whole new one. The same is true of a
    folder, except that a kill between two renames leaves none: no folder with files can be replaced in one step.

    Args:
        path: the file or folder to write.
        shared: several processes may write it at the same time, each under its own temporary name.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file or folder is untouched.
    """
    own = f".{os.getpid()}-{time.monotonic_ns()}" if shared else ""
    unfinished = path.with_name(f"{path.name}{own}{UNFINISHED}")
    earlier = _earlier(path)
    if earlier.is_dir() and not path.exists():
        # A process was killed between the two renames.
        earlier.rename(path)
    if unfinished.is_dir():
        # A killed process left it.
        shutil.rmtree(unfinished)
    try:
        yield unfinished
        flush(unfinished)
        if unfinished.is_dir() and path.is_dir():
            _replace_folder(path, unfinished)
        else:
            unfinished.replace(path)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def _earlier(path: Path) -> Path:
    """Return the name that a folder has while another one takes its place."""
    return path.with_name(f".{path.name}.earlier")


def _replace_folder(path: Path, new: Path) -> None:
    """Put a folder in the place of another one, which stays if that fails."""
    earlier = _earlier(path)
    # A killed process may have left one.
    shutil.rmtree(earlier, ignore_errors=True)
    path.rename(earlier)
    try:
        new.rename(path)
    except OSError:
        earlier.rename(path)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file, or every file in a folder and its subfolders, has reached the disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def whole_files(folder: Path) -> list[Path]:
    """Return the files in a folder and below, without those that a killed process left unfinished."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [file for file in files if not any(part.endswith(UNFINISHED) for part in file.relative_to(folder).parts)]


def share_as_folder(path: Path) -> None:
    """Give a file the read and write permissions of its folder: safetensors makes files for their owner only."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def write_json(path: Path, content: Mapping[str, Any], *, shared: bool = False) -> None:
    """Replace a file by `content` as JSON; see `replacing`.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file is untouched.
    """
    with replacing(path, shared=shared) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def digest_of(content: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits that identify `content`, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

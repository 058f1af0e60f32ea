"""A folder that is written as a whole, and replaces an earlier one of the same kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsae.files import replacing


@contextmanager
def new_folder(folder: Path, mark: str) -> Iterator[Path]:
    """Yield an empty temporary folder, which gets its final name at the end of the block.

    Args:
        folder: the final one; an earlier one is replaced.
        mark: a file that every folder of this kind has.

    Raises:
        ValueError: something else is there.
        OSError: no space is left, or the folder cannot be written; an earlier one is untouched.
    """
    if folder.exists() and not (folder / mark).is_file():
        raise ValueError(f"{folder} exists and is no such export (it has no {mark}); name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as unfinished:
        unfinished.mkdir()
        yield unfinished

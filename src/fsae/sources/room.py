"""Room on disk for activations."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from fsae.sources.activation_store import folder_bytes


@dataclass(frozen=True, kw_only=True)
class Room:
    """Limits of the folder of all activation stores.

    Attributes:
        folder: the folder; it need not exist yet.
        limit_gb: size limit of all stores together; None for the disk's own limit.
        required: fail if no room is left, instead of continuing in memory.
    """

    folder: Path
    limit_gb: float | None
    required: bool = False

    def free(self) -> int:
        """Return how many bytes the disk has left."""
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return shutil.disk_usage(existing).free

    def require(self, needed: int) -> None:
        """Raise OSError if `needed` more bytes exceed the limit or the disk."""
        if self.limit_gb is not None:
            taken = folder_bytes(self.folder)
            if taken + needed > self.limit_gb * 1e9:
                raise OSError(
                    errno.EDQUOT,
                    f"source.cache_gb is {self.limit_gb:g}, the stores in {self.folder} take {taken / 1e9:.3g} GB and "
                    f"{needed / 1e9:.3g} GB are to be added",
                )
        free = self.free()
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"{needed / 1e9:.3g} GB of activations are to be written to {self.folder} and {free / 1e9:.3g} GB "
                "are free there",
            )

    @contextmanager
    def taken(self, needed: int) -> Iterator[None]:
        """Reserve room for `needed` more bytes, which the block writes.

        If there is a limit, one process writes at a time: two that both find room would exceed it together.

        Raises:
            OSError: there is no room.
        """
        if self.limit_gb is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "room.lock"):
            self.require(needed)
            yield

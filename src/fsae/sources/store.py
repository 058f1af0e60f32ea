"""The activation store: shards of one site's activations on disk, whole or not there at all."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xxhash
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fsae.sources.documents import Part
from fsae.sources.harvest import Shard

log = logging.getLogger(__name__)

# Of the layout described in docs/activations.md; another number means that this program cannot read it.
FORMAT = 1

_MANIFEST = "store.json"
_IN_USE = "in_use.lock"
_READ_AT_ONCE = 1 << 22
# What one vector has besides its activations: token and document (int32), label (int64).
_FACT_BYTES = 4 + 4 + 8


class DamagedShard(Exception):  # noqa: N818 - a state of a file that is found out, told and mended
    """A shard's file is not what was written; the message says how."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What stands beside a shard's file, written after it: where there is a record, the shard is whole.

    Attributes:
        count: vectors.
        bytes, checksum: of the file; xxh3, 128 bits.
        mean_norm: of the vectors.
        text_ended: whether there is no more text after it.
        text: the text's position after it, less what is in the file; None where the next shard begins elsewhere.
        label_names: what labels that stand for text mean.
    """

    count: int
    bytes: int
    checksum: str
    mean_norm: float
    text_ended: bool
    text: dict[str, Any] | None
    label_names: list[str]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds.

    Attributes:
        content: everything that determines its vectors.
        d_in: their width.
        prepends_bos: whether each row of text began with a BOS.
        written_by: which program, in which version.
        format: of the layout.
    """

    content: dict[str, Any]
    d_in: int
    prepends_bos: bool
    written_by: str = f"fsae {version('fsae')}"
    format: int = FORMAT


def digest_of(content: dict[str, Any]) -> str:
    """Eight hexadecimal digits that stand for what determines a store's vectors."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


class Store:
    """One site's activations in a folder of their own.

    Shards are safetensors files with `activations` and, for each vector, `tokens`, `documents` and `labels`; a record
    in JSON stands beside each. Files appear under their names by a rename after they reached the disk. Any number of
    processes may read and write: whoever holds a shard's lock writes it.

    Args:
        folder: made when the first shard is written.
        marked: whether to keep it from being pruned until `close`, and to note that it was used.

    Raises:
        ValueError: the folder was written in another format, or its manifest is damaged.
    """

    def __init__(self, folder: Path, marked: bool = True):
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._told: set[str] = set()
        self._use: int | None = None
        if marked and self.manifest is not None:
            self._mark_in_use()

    def create(self, manifest: Manifest) -> None:
        """Make the folder and say what it holds, where that is not done."""
        self._mark_in_use()
        # Not only where this object found none: the folder may have been removed since.
        if not (self.folder / _MANIFEST).exists():
            _write_json(self.folder / _MANIFEST, asdict(manifest))
        self.manifest = manifest

    def path(self, part: Part, number: int) -> Path:
        """A shard's file."""
        return self.folder / f"{part.value}-{number:05d}.safetensors"

    def record(self, part: Part, number: int) -> ShardRecord | None:
        """What is known of a shard; None where there is none, or its file has not the size it was written with."""
        path = self.path(part, number)
        try:
            record = ShardRecord(**json.loads(path.with_suffix(".json").read_text()))
            found = path.stat().st_size
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            self._tell(f"the record beside {path} cannot be read ({error}); that shard is harvested again")
            return None
        if found != record.bytes:
            self._tell(f"{path} has {found} bytes instead of {record.bytes}; it is harvested again")
            return None
        return record

    def holds(self, part: Part, number: int, count: int) -> bool:
        """Whether a shard is there with `count` vectors, or with all that the text has."""
        record = self.record(part, number)
        return record is not None and (record.count >= count or record.text_ended)

    def read(self, part: Part, number: int) -> Shard:
        """A shard, mapped into memory; its checksum is compared when this object first reads it, which also brings the
        file into memory in one sweep.

        Raises:
            DamagedShard: it is not what was written.
        """
        path, record = self.path(part, number), self.record(part, number)
        if record is None:
            raise DamagedShard(f"{path} is cut short")
        with self._whole(path, record) as tensors:
            return Shard(
                activations=tensors.get_tensor("activations"),
                tokens=tensors.get_tensor("tokens"),
                documents=tensors.get_tensor("documents"),
                labels=tensors.get_tensor("labels") if "labels" in tensors.keys() else None,  # noqa: SIM118
            )

    def text_after(self, part: Part, number: int) -> dict[str, Any] | None:
        """The text's position after a shard, where it is known and the shard is not damaged."""
        record = self.record(part, number)
        if record is None or record.text is None:
            return None
        with suppress(DamagedShard), self._whole(self.path(part, number), record) as tensors:
            return record.text | {"pending": tensors.get_tensor("text_pending")}
        return None

    def write(
        self,
        part: Part,
        number: int,
        shard: Shard,
        *,
        text: dict[str, Any] | None,
        text_ended: bool,
        label_names: list[str],
    ) -> None:
        """Put a shard in place; the caller holds its lock.

        Raises:
            OSError: no space is left, or a quota is reached; nothing is left of it.
        """
        path = self.path(part, number)
        aside, record_aside = path.with_suffix(".partial"), path.with_suffix(".json.partial")
        tensors = {"activations": shard.activations, "tokens": shard.tokens, "documents": shard.documents}
        if shard.labels is not None:
            tensors["labels"] = shard.labels
        if text is not None:
            tensors["text_pending"] = text["pending"]
            text = {name: value for name, value in text.items() if name != "pending"}
        try:
            _save(tensors, aside)
            record = ShardRecord(
                count=len(shard),
                bytes=aside.stat().st_size,
                checksum=checksum_of(aside),
                mean_norm=_mean_norm(shard.activations),
                text_ended=text_ended,
                text=text,
                label_names=label_names,
            )
            # Both are on the disk before a shorter shard that they replace is touched: it outlives a disk that is full.
            _write_json(record_aside, asdict(record))
            # No shard is described by the other's record, not for a moment.
            path.with_suffix(".json").unlink(missing_ok=True)
            aside.replace(path)
            record_aside.replace(path.with_suffix(".json"))
        finally:
            aside.unlink(missing_ok=True)
            record_aside.unlink(missing_ok=True)

    def discard(self, part: Part, number: int) -> None:
        """Forget a shard; the caller holds its lock."""
        path = self.path(part, number)
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    @contextmanager
    def lock(self, part: Part, number: int) -> Iterator[bool]:
        """Whether the shard is ours to write as long as the block lasts; False where another process has it."""
        # Who waits for another's shards uses the store as well.
        self._mark_in_use()
        lock = FileLock(self.path(part, number).with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def shards(self) -> list[tuple[Part, int]]:
        """Those that have a record, in order."""
        names = sorted(path.stem for path in self.folder.glob("*-*.json"))
        return [(Part(name.rpartition("-")[0]), int(name.rpartition("-")[2])) for name in names]

    def bytes(self) -> int:
        """What the folder takes on disk."""
        return folder_bytes(self.folder)

    def close(self) -> None:
        """Let it be pruned."""
        if self._use is not None:
            os.close(self._use)
            self._use = None

    @contextmanager
    def _whole(self, path: Path, record: ShardRecord) -> Iterator[safe_open]:
        """A shard's file, which has its checksum."""
        try:
            # Each time: it also reads the file in a row, which a shuffle through the mapped file would not.
            if checksum_of(path) != record.checksum:
                raise DamagedShard(f"{path} does not have the checksum it was written with")
            file = safe_open(path, framework="pt")
        except FileNotFoundError:
            # Another process has just discarded it.
            raise DamagedShard(f"{path} was removed") from None
        with file as tensors:
            yield tensors

    def _tell(self, message: str) -> None:
        """Say it once: a shard is looked at often while another process mends it."""
        if message not in self._told:
            self._told.add(message)
            log.warning(message)

    def _mark_in_use(self) -> None:
        while self._use is None:
            # The folder may be removed between any two of these, and even within the first.
            with suppress(FileNotFoundError, FileExistsError):
                self.folder.mkdir(parents=True, exist_ok=True)
                # Held until the process ends, however it does.
                descriptor = os.open(self.folder / _IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                # Without a name it went with a store that was removed while we waited: it keeps nobody out.
                if os.fstat(descriptor).st_nlink > 0:
                    os.utime(descriptor)
                    self._use = descriptor
                else:
                    os.close(descriptor)


def read_manifest(folder: Path) -> Manifest | None:
    """What a store's folder holds; None where there is no store, or the first write of one was cut off.

    Raises:
        ValueError: it was written in another format, or its manifest is damaged.
    """
    where = shlex.quote(str(folder.parent))
    remedy = (
        f"remove it with `python -m fsae.store --folder {where} prune {folder.name}`, or use another outputs folder "
        "(paths.outputs)"
    )
    try:
        values = json.loads((folder / _MANIFEST).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"the activation store {folder} has a damaged {_MANIFEST} ({error}); {remedy}") from None
    found = values.get("format")
    if found != FORMAT:
        raise ValueError(
            f"the activation store {folder} was written by {values.get('written_by', 'another version')} in format "
            f"{found}, and this version reads format {FORMAT}; {remedy}"
        )
    return Manifest(**values)


def store_folders(activations: Path) -> list[Path]:
    """The folders of all stores, whatever their format."""
    return sorted(path.parent for path in activations.glob(f"*/{_MANIFEST}"))


def last_used(folder: Path) -> float:
    """When a run last opened a store, in seconds since the epoch."""
    marks = [folder / name for name in (_IN_USE, _MANIFEST)]
    return max(mark.stat().st_mtime for mark in marks if mark.exists())


def in_use(folder: Path) -> bool:
    """Whether a run has a store open."""
    with _kept_out(folder) as nobody:
        return not nobody


def remove(folder: Path) -> bool:
    """Remove a store, unless a run has it open; whether it did. A run that opens it meanwhile waits for the end."""
    with _kept_out(folder) as nobody:
        if nobody:
            # In this order a store whose removal is cut off is still listed, and nobody opens the rest of one.
            last = [folder / _MANIFEST, folder / _IN_USE]
            for path in [*({*folder.iterdir()} - {*last}), *last]:
                path.unlink(missing_ok=True)
            # Unless a run has begun it anew.
            with suppress(OSError):
                folder.rmdir()
        return nobody


@contextmanager
def _kept_out(folder: Path) -> Iterator[bool]:
    """Whether no run has a store open; then none opens it as long as the block lasts."""
    descriptor = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        nobody = True
    except BlockingIOError:
        nobody = False
    try:
        yield nobody
    finally:
        os.close(descriptor)


def folder_bytes(folder: Path) -> int:
    """What the files below a folder take; they may come and go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def shard_bytes(count: int, d_in: int, dtype: torch.dtype) -> int:
    """About what a shard of so many vectors takes on disk."""
    return count * (d_in * dtype.itemsize + _FACT_BYTES)


def checksum_of(path: Path) -> str:
    """A file's checksum: xxh3 of 128 bits, which keeps up with a disk where cryptographic ones do not."""
    checksum = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_READ_AT_ONCE))
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            # The disk is to go on while sums are taken.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        while count := file.readinto(buffer):
            checksum.update(buffer[:count])
    return checksum.hexdigest()


def is_full(error: OSError) -> bool:
    """Whether it says that a disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        # It gives the system's error as text only.
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    # It makes files for their owner only; the store is for whom its folder is for.
    path.chmod(path.parent.stat().st_mode & 0o666)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_json(path: Path, values: dict[str, Any]) -> None:
    # A name of its own: a store's manifest may be written by several processes at a time.
    aside = path.with_name(f"{path.name}.{os.getpid()}-{time.monotonic_ns()}.partial")
    try:
        with aside.open("w") as file:
            json.dump(values, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _mean_norm(activations: torch.Tensor) -> float:
    total = sum(float(part.float().norm(dim=1).double().sum()) for part in activations.split(65_536))
    return total / max(1, len(activations))

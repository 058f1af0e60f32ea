"""The activation store: shards of one site's activations on disk, each whole or absent."""

import errno
import fcntl
import json
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xxhash
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fsae.errors import first_line
from fsae.files import digest_of, flush, replacing, share_as_folder, write_json
from fsae.sources.shard import Extent, Part, Shard

log = logging.getLogger(__name__)

# The number of the layout that docs/activations.md describes; this program cannot read a store of another number.
FORMAT = 2

_MANIFEST = "store.json"
_IN_USE = "in_use.lock"
_READ_AT_ONCE = 1 << 22
# Bytes per vector besides its activations: token and document (int32), and a label (int64) if there are labels.
_FACT_BYTES = 4 + 4
_LABEL_BYTES = 8
# Bytes per shard besides its vectors, at most: the file's header and the record; names of labels are extra.
_OVERHEAD_BYTES = 2_000
# Values in the records of earlier versions that nothing reads any more; the seals of those records cover them.
_RETIRED = {"mean_norm"}
# The names of a shard's two files.
_NAME = re.compile(r"(train|held_out)-(\d{5}|[1-9]\d{5,})\.(?:safetensors|json)")
# Other names in a store's folder: files that are being written or locked.
_OTHER_NAMES = re.compile(r".*\.(?:partial|lock)")


class DamagedShard(Exception):  # noqa: N818 - recoverable: the shard is reported and harvested again
    """A shard's file differs from the file that was written; the message says how."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """Record of a shard, written next to its file and after it: a shard with a record is whole.

    Attributes:
        store: the digest of the content of the store that the shard was written for.
        part, number: the shard's part, and its number in that part.
        count: vectors in the shard.
        bytes, checksum: size and checksum of the file; xxh3, 128 bits.
        text_ended: whether there is no more text after the shard.
        text: the text's position after the shard; None if the next shard begins elsewhere.
        distinct: vectors from text that no earlier shard has read.
        skipped_rows: rows of the data set without a document, in the pass over it in which the shard ends.
        label_names: the texts for which numbers in `labels` stand.
        seal: a checksum of all the other values.
    """

    store: str
    part: str
    number: int
    count: int
    bytes: int
    checksum: str
    text_ended: bool
    text: dict[str, Any] | None
    distinct: int
    skipped_rows: int
    label_names: list[str]
    seal: str = ""

    def sealed(self) -> "ShardRecord":
        """Return the same record with its seal."""
        return replace(self, seal=_seal_of(asdict(self)))


def _seal_of(values: dict[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(values | {"seal": ""}, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Manifest of a store: what the store holds.

    Attributes:
        content: everything that determines its vectors.
        d_in: width of the vectors.
        prepends_bos: whether each row of text began with a BOS.
        written_by: the program that wrote the store, and its version.
        format: number of the layout.
    """

    content: dict[str, Any]
    d_in: int
    prepends_bos: bool
    written_by: str = f"fsae {version('fsae')}"
    format: int = FORMAT


class ActivationStore:
    """A folder with one site's activations.

    Shards are safetensors files with `activations` and, for each vector, `tokens`, `documents` and `labels`; a record
    in JSON lies next to each file. Files get their names by a rename after they have reached the disk. Any number of
    processes may read and write: the process that holds a shard's lock writes it.

    Args:
        folder: the folder; it is made when the first shard is written.
        content: what determines the vectors that the store is to hold; None to read whatever it holds.
        marked: whether to keep the store from being pruned until `close`, and to record that it was used.

    Raises:
        ValueError: the folder was written in another format, its manifest is damaged, or it holds other content.
        OSError: permissions forbid reading the manifest.
    """

    def __init__(self, folder: Path, content: dict[str, Any] | None = None, marked: bool = True):
        self.folder, self._content = folder, content
        self.manifest = read_manifest(folder)
        if content is not None and self.manifest is not None and digest_of(content) != digest_of(self.manifest.content):
            raise ValueError(
                f"the activation store {folder} holds other activations than its name says: its {_MANIFEST} was "
                f"changed or is another store's; {_remedy(folder)}"
            )
        self._warned: set[str] = set()
        self._use: int | None = None
        if marked and self.manifest is not None:
            self._mark_in_use()

    def create(self, *, d_in: int, prepends_bos: bool) -> None:
        """Make the folder and write its manifest, if another process has not done so.

        Args:
            d_in: width of the vectors.
            prepends_bos: whether each row of text begins with a BOS.
        """
        assert self._content is not None
        manifest = Manifest(content=self._content, d_in=d_in, prepends_bos=prepends_bos)
        self._mark_in_use()
        # Also if this object has found a manifest: the folder may have been removed meanwhile.
        if not (self.folder / _MANIFEST).exists():
            # Several processes may do so at the same time.
            write_json(self.folder / _MANIFEST, asdict(manifest), shared=True)
        self.manifest = manifest

    def path(self, part: Part, number: int) -> Path:
        """Return the path of a shard's file."""
        return self.folder / f"{part.value}-{number:05d}.safetensors"

    def record(self, part: Part, number: int) -> ShardRecord | None:
        """Return a shard's record; None if there is no shard, or if its file or record is damaged."""
        try:
            return self._record(part, number)
        except DamagedShard as damage:
            self._warn_once(f"{damage}; it is harvested again")
        return None

    def _record(self, part: Part, number: int) -> ShardRecord | None:
        path = self.path(part, number)
        try:
            values = json.loads(path.with_suffix(".json").read_text())
            found = path.stat().st_size
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise DamagedShard(f"{path}: its record cannot be read ({first_line(error)})") from error
        names = {each.name for each in fields(ShardRecord)}
        if not isinstance(values, dict) or values.keys() - _RETIRED != names:
            raise DamagedShard(f"{path}: its record does not have format {FORMAT}")
        if _seal_of(values) != values["seal"]:
            raise DamagedShard(f"{path}: its record was changed")
        record = ShardRecord(**{name: values[name] for name in names})
        if (record.part, record.number) != (part.value, number):
            raise DamagedShard(f"{path} was written as shard {record.number} of the part {record.part}")
        if self.manifest is not None and record.store != digest_of(self.manifest.content):
            raise DamagedShard(f"{path} was written for another store, with the digest {record.store}")
        if found != record.bytes:
            raise DamagedShard(f"{path} has {found} bytes instead of {record.bytes}")
        return record

    def holds(self, part: Part, number: int, count: int) -> bool:
        """Return whether the store has a shard with `count` vectors, or with all vectors that the text has."""
        record = self.record(part, number)
        return record is not None and (record.count >= count or record.text_ended)

    def read(self, part: Part, number: int) -> Shard:
        """Return a shard, mapped into memory.

        Its checksum is compared every time, which also reads the file into memory in one sweep.

        Raises:
            DamagedShard: the file differs from the file that was written.
        """
        path, record = self.path(part, number), self._record(part, number)
        if record is None:
            raise DamagedShard(f"{path} or its record was removed")
        with self._whole(path, record) as tensors:
            return Shard(
                activations=tensors.get_tensor("activations"),
                tokens=tensors.get_tensor("tokens"),
                documents=tensors.get_tensor("documents"),
                labels=tensors.get_tensor("labels") if "labels" in tensors.keys() else None,  # noqa: SIM118
            )

    def text_after(self, part: Part, number: int) -> dict[str, Any] | None:
        """Return the text's position after a shard, or None if it is unknown."""
        record = self.record(part, number)
        return None if record is None else record.text

    def write(
        self,
        part: Part,
        number: int,
        shard: Shard,
        *,
        text: dict[str, Any] | None,
        text_ended: bool,
        distinct: int,
        skipped_rows: int,
        label_names: list[str],
    ) -> None:
        """Write a shard; the caller holds its lock and has made the folder.

        Raises:
            OSError: no space is left, or a quota is reached; no part of the shard remains.
        """
        path = self.path(part, number)
        tensors = {"activations": shard.activations, "tokens": shard.tokens, "documents": shard.documents}
        if shard.labels is not None:
            tensors["labels"] = shard.labels
        assert self.manifest is not None
        # Both files reach the disk before they replace a shorter shard: a full disk does not destroy that shard.
        with replacing(path.with_suffix(".json")) as unfinished_record, replacing(path) as unfinished:
            _save(tensors, unfinished)
            flush(unfinished)
            record = ShardRecord(
                store=digest_of(self.manifest.content),
                part=part.value,
                number=number,
                count=len(shard),
                bytes=unfinished.stat().st_size,
                checksum=checksum_of(unfinished),
                text_ended=text_ended,
                text=text,
                distinct=distinct,
                skipped_rows=skipped_rows,
                label_names=label_names,
            ).sealed()
            write_json(unfinished_record, asdict(record))
            # The shard is renamed before its record, so that a record never describes another shard.
            path.with_suffix(".json").unlink(missing_ok=True)

    def discard(self, part: Part, number: int) -> None:
        """Remove a shard; the caller holds its lock."""
        path = self.path(part, number)
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    @contextmanager
    def lock(self, part: Part, number: int) -> Iterator[bool]:
        """Lock a shard for writing until the block ends; yield False if another process has the lock."""
        # A process that waits for another's shards uses the store as well.
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
        """Return the shards that have a record, in order."""
        found = [match for path in self.folder.glob("*.json") if (match := _NAME.fullmatch(path.name))]
        return sorted(
            ((Part(match[1]), int(match[2])) for match in found), key=lambda place: (place[0].value, place[1])
        )

    def missing(self, extent: Extent) -> Iterator[tuple[Part, int]]:
        """Yield the shards of an extent that the store lacks, up to the end of the text if the store knows it."""
        for part in Part:
            for number in range(extent.shards(part)):
                if not self.holds(part, number, extent.count(part, number)):
                    yield part, number
                elif (record := self.record(part, number)) and record.text_ended:
                    break

    def missing_bytes(self, extent: Extent, size: Callable[[int], int]) -> int:
        """Return the size of an extent's missing shards, without a pass over all of them.

        Args:
            extent: the shards that are wanted.
            size: returns the bytes of a shard with a given number of vectors.
        """
        total = 0
        for part in Part:
            shards = extent.shards(part)
            if shards == 0:
                continue
            total += (shards - 1) * size(extent.shard_tokens) + size(extent.count(part, shards - 1))
            for each, number in self.shards():
                if each is not part or number >= shards or not self.holds(part, number, extent.count(part, number)):
                    continue
                total -= size(extent.count(part, number))
                if (record := self.record(part, number)) and record.text_ended:
                    # There is no more text for the shards after it.
                    if number < shards - 1:
                        total -= (shards - 2 - number) * size(extent.shard_tokens)
                        total -= size(extent.count(part, shards - 1))
                    break
        return total

    def foreign(self) -> list[Path]:
        """Return the paths in the folder that are no part of a store."""
        own = {_MANIFEST, _IN_USE}
        return sorted(
            path
            for path in self.folder.iterdir()
            if path.name not in own and not _NAME.fullmatch(path.name) and not _OTHER_NAMES.fullmatch(path.name)
        )

    def unrecorded(self) -> list[Path]:
        """Return files with a shard's name and without a record: leftovers of an interrupted write or a copy."""
        files = self.folder.glob("*.safetensors")
        return sorted(path for path in files if _NAME.fullmatch(path.name) and not path.with_suffix(".json").exists())

    def bytes(self) -> int:
        """Return how many bytes the folder takes on disk."""
        return folder_bytes(self.folder)

    def close(self) -> None:
        """Let other processes prune the store."""
        if self._use is not None:
            os.close(self._use)
            self._use = None

    @contextmanager
    def _whole(self, path: Path, record: ShardRecord) -> Iterator[safe_open]:
        """Open a shard's file after comparing its checksum."""
        try:
            # On every open: this also reads the file sequentially, unlike a shuffle through the mapped file.
            if checksum_of(path) != record.checksum:
                raise DamagedShard(f"{path} does not have the checksum it was written with")
            file = safe_open(path, framework="pt")
        except FileNotFoundError:
            # Another process has just removed it.
            raise DamagedShard(f"{path} was removed") from None
        with file as tensors:
            yield tensors

    def _warn_once(self, message: str) -> None:
        """Log a warning only once, because a shard is checked often while another process harvests it again."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)

    def _mark_in_use(self) -> None:
        while self._use is None:
            # The folder may be removed between any two of these steps, and even within the first.
            with suppress(FileNotFoundError, FileExistsError):
                self.folder.mkdir(parents=True, exist_ok=True)
                # Held until the process ends, however it ends.
                descriptor = os.open(self.folder / _IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                # If the lock file has no name any more, its store was removed meanwhile: the lock protects nothing.
                if os.fstat(descriptor).st_nlink > 0:
                    os.utime(descriptor)
                    self._use = descriptor
                else:
                    os.close(descriptor)


def read_manifest(folder: Path) -> Manifest | None:
    """Return a store's manifest; None if there is no store, or if its first write was interrupted.

    Raises:
        ValueError: the store was written in another format, or its manifest is damaged.
        OSError: permissions forbid reading it.
    """
    try:
        values = json.loads((folder / _MANIFEST).read_text())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        reason = first_line(error)
    else:
        if isinstance(values, dict) and values.get("format") != FORMAT:
            raise ValueError(
                f"the activation store {folder} was written by {values.get('written_by', 'another version')} in format "
                f"{values.get('format')}, and this version reads format {FORMAT}; {_remedy(folder)}"
            )
        reason = _unfit(values)
        if reason is None:
            return Manifest(**values)
    raise ValueError(f"the activation store {folder} has a damaged {_MANIFEST} ({reason}); {_remedy(folder)}")


def _unfit(values: Any) -> str | None:
    """Return why these values are no manifest, or None if they are one."""
    kinds = {"content": dict, "d_in": int, "prepends_bos": bool, "written_by": str, "format": int}
    if not isinstance(values, dict):
        return f"it holds {type(values).__name__}, not an object"
    for name, kind in kinds.items():
        if name not in values:
            return f"{name} is missing"
        if type(values[name]) is not kind:
            return f"{name} is {values[name]!r:.40}, which is not of the type {kind.__name__}"
    unknown = next((name for name in values if name not in kinds), None)
    return None if unknown is None else f"{unknown!r:.40} is no key of it"


def _remedy(folder: Path) -> str:
    return (
        f"remove it with `python -m fsae.store --folder {shlex.quote(str(folder.parent))} prune "
        f"{shlex.quote(folder.name)}`, or use another outputs folder (paths.outputs)"
    )


def store_folders(activations: Path) -> list[Path]:
    """Return the folders of all stores, whatever their format; none if there is no such folder.

    Raises:
        OSError: permissions forbid reading it, or it is no folder.
    """
    if not activations.exists():
        return []
    return sorted(folder for folder in activations.iterdir() if (folder / _MANIFEST).exists())


def last_used(folder: Path) -> float:
    """Return when a run last opened a store, in seconds since the epoch."""
    marks = [folder / name for name in (_IN_USE, _MANIFEST)]
    return max((mark.stat().st_mtime for mark in marks if mark.exists()), default=0.0)


def in_use(folder: Path) -> bool:
    """Return whether a run has a store open; False if only another user could find out."""
    try:
        with _kept_out(folder) as nobody:
            return not nobody
    except PermissionError:
        return False


def remove(folder: Path) -> bool:
    """Remove a store unless a run has it open; return whether it was removed.

    A run that opens the store meanwhile waits until it is removed.
    """
    with _kept_out(folder) as nobody:
        if nobody:
            # The manifest and the lock go last: after an interrupted removal the store is still listed, and no run
            # opens the rest of it before the lock is released.
            last = [folder / _MANIFEST, folder / _IN_USE]
            for path in [*({*folder.iterdir()} - {*last}), *last]:
                path.unlink(missing_ok=True)
            # A run may have made the store again.
            with suppress(OSError):
                folder.rmdir()
        return nobody


@contextmanager
def _kept_out(folder: Path) -> Iterator[bool]:
    """Yield whether no run has a store open; if so, no run can open it until the block ends."""
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
    """Return how many bytes the files below a folder take; files may appear and disappear meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def shard_bytes(count: int, d_in: int, dtype: torch.dtype, labelled: bool) -> int:
    """Return how many bytes a shard of so many vectors takes on disk, rounded up a little."""
    return count * (d_in * dtype.itemsize + _FACT_BYTES + labelled * _LABEL_BYTES) + _OVERHEAD_BYTES


def checksum_of(path: Path) -> str:
    """Return a file's checksum: xxh3 of 128 bits, which is as fast as a disk; cryptographic checksums are not."""
    checksum = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_READ_AT_ONCE))
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            # The disk reads ahead while the checksum is computed.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        while count := file.readinto(buffer):
            checksum.update(buffer[:count])
    return checksum.hexdigest()


def is_full(error: OSError) -> bool:
    """Return whether an error reports a full disk or quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        # safetensors reports the system's error as text only.
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    share_as_folder(path)

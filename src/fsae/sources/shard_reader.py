"""The shards of a stream, wherever they come from: the store where it has them, the language model otherwise."""

import errno
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from fsae.language_models.sites import Site
from fsae.progress import SECONDS_BETWEEN_LINES
from fsae.sources.activation_store import ActivationStore, DamagedShard, Manifest, folder_bytes, is_full, shard_bytes
from fsae.sources.documents import Part
from fsae.sources.harvest import Harvested, Harvester, Shard, order_in_shard

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How many vectors a run wants, and how they are cut into shards.

    Attributes:
        tokens: of each part.
        shard_tokens: a shard; the last one of a part may be shorter.
    """

    tokens: dict[Part, int]
    shard_tokens: int

    def shards(self, part: Part) -> int:
        """How many shards a part has."""
        return -(-self.tokens[part] // self.shard_tokens)

    def count(self, part: Part, number: int) -> int:
        """How many vectors a shard has."""
        return min(self.shard_tokens, self.tokens[part] - number * self.shard_tokens)

    def missing(self, store: ActivationStore) -> Iterator[tuple[Part, int]]:
        """The shards that a store does not hold, as far as it knows the text to go."""
        for part in Part:
            for number in range(self.shards(part)):
                if not store.holds(part, number, self.count(part, number)):
                    yield part, number
                elif (record := store.record(part, number)) and record.text_ended:
                    break

    def missing_bytes(self, store: ActivationStore, size: Callable[[int], int]) -> int:
        """What the shards that a store does not hold will take, without going through all of them.

        Args:
            size: what a shard of so many vectors takes.
        """
        total = 0
        for part in Part:
            shards = self.shards(part)
            if shards == 0:
                continue
            total += (shards - 1) * size(self.shard_tokens) + size(self.count(part, shards - 1))
            for each, number in store.shards():
                if each is not part or number >= shards or not store.holds(part, number, self.count(part, number)):
                    continue
                total -= size(self.count(part, number))
                if (record := store.record(part, number)) and record.text_ended:
                    # There is no more text for those after it.
                    if number < shards - 1:
                        total -= (shards - 2 - number) * size(self.shard_tokens) + size(self.count(part, shards - 1))
                    break
        return total


@dataclass(frozen=True, kw_only=True)
class Room:
    """What may be written to the folder of all activation stores.

    Attributes:
        folder: need not be there yet.
        limit_gb: what all stores may take together; None for what the disk has.
    """

    folder: Path
    limit_gb: float | None

    def free(self) -> int:
        """Bytes that the disk has left."""
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return shutil.disk_usage(there).free

    def require(self, needed: int) -> None:
        """Raise OSError where `needed` more bytes exceed the limit or the disk."""
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
        """Room for `needed` more bytes, which are written within the block.

        Where there is a limit, one process writes at a time: two that both find room would exceed it together.

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


class Shards:
    """Gives out the shards of one site; what is missing in the store it harvests and writes there.

    Several processes may do so at once on one store: each missing shard is harvested by whichever gets its lock, and
    who waits for one harvests a later one meanwhile.

    Args:
        harvester: runs the language model.
        site: whose shards are given out.
        stores: of this site and of others to fill in the same forward passes; none at all to keep nothing on disk.
        contents: what determines each store's vectors, for its manifest.
        extent: which shards there are.
        dtype: of the activations.
        room: what may be written.
        labelled: whether there are labels.
        writing: whether missing shards are written; without, they are harvested into memory.
        required: whether to fail, and not to go on in memory, when there is no room left.
    """

    def __init__(
        self,
        harvester: Harvester,
        site: Site,
        stores: dict[Site, ActivationStore],
        contents: dict[Site, dict[str, Any]],
        extent: Extent,
        dtype: torch.dtype,
        room: Room,
        *,
        labelled: bool = False,
        writing: bool,
        required: bool,
    ):
        assert not stores or site in stores
        self.harvester, self.site, self.extent = harvester, site, extent
        self._stores, self._contents, self._dtype, self._room = stores, contents, dtype, room
        self._labelled, self._writing, self._required = labelled, writing, required
        self.made = 0

    @property
    def prepends_bos(self) -> bool:
        """Whether each row of text begins with a BOS; opens the language model where no store knows."""
        store = self._stores.get(self.site)
        if store is not None and store.manifest is not None:
            return store.manifest.prepends_bos
        return self.harvester.prepends_bos

    def shard(self, part: Part, number: int) -> Shard:
        """One shard, once it is there.

        Raises:
            ValueError: activations that are not finite, or no memory for them.
            OSError: no room for a shard that must be written.
        """
        count = self.extent.count(part, number)
        store = self._stores.get(self.site)
        if store is None:
            return self._harvest(part, number, count, [self.site]).shards[self.site]
        while True:
            if not self._await(store, part, number, count):
                return self._harvest(part, number, count, [self.site]).shards[self.site]
            try:
                return _beginning(store.read(part, number), part, number, count)
            except DamagedShard:
                self._discard_damaged(store, part, number)

    def fill(self) -> None:
        """Put every shard of every site into its store, together with the other processes that do the same.

        Raises:
            ValueError: activations that are not finite, or no memory for them.
            OSError: no room.
        """
        waited = _Waiting(self)
        try:
            while wanted := [place for store in self._stores.values() for place in self.extent.missing(store)]:
                if not any(self._make(part, number, list(self._stores)) for part, number in wanted):
                    waited.a_moment(*wanted[0])
        except OSError as error:
            if is_full(error):
                raise self._without_room(error) from error
            raise

    def distinct(self, part: Part, count: int) -> int:
        """How many of a part's first `count` vectors are from the first pass over the text; all of a shard's where
        nobody knows."""
        total = 0
        for number in range(min(self.extent.shards(part), -(-count // self.extent.shard_tokens))):
            known = self.harvester.distinct.get((part, number))
            if known is None and (store := self._stores.get(self.site)) and (record := store.record(part, number)):
                known = record.distinct
            here = min(self.extent.count(part, number), count - number * self.extent.shard_tokens)
            total += here if known is None else min(known, here)
            if known is not None and known < here:
                break
        return total

    @property
    def skipped_rows(self) -> int:
        """Rows of the data set that held no document, in one pass over it, as far as it was read."""
        store = self._stores.get(self.site)
        records = [store.record(*place) for place in store.shards()] if store else []
        return max([self.harvester.skipped_rows, *(record.skipped_rows for record in records if record is not None)])

    def held_out_count(self) -> int | None:
        """How many held-out vectors the store has, where it has all that there are or all that are wanted."""
        store, total = self._stores.get(self.site), 0
        for number in range(self.extent.shards(Part.held_out) if store else 0):
            record = store.record(Part.held_out, number) if store else None
            if record is None:
                return None
            total += min(record.count, self.extent.count(Part.held_out, number))
            if record.text_ended:
                break
        return total if store else None

    def close(self) -> None:
        """Let the stores be pruned."""
        for store in self._stores.values():
            store.close()

    def _await(self, store: ActivationStore, part: Part, number: int, count: int) -> bool:
        """Return True once the store holds a shard; False where it has to be harvested into memory."""
        waited = _Waiting(self)
        while self._writing:
            try:
                # Of the other sites, too, where this one is there already.
                if self._make(part, number, list(self._stores)):
                    continue
                if store.holds(part, number, count):
                    return True
                later = range(number + 1, self.extent.shards(part))
                if not any(self._make(part, another, [self.site]) for another in later):
                    waited.a_moment(part, number)
            except OSError as error:
                if not is_full(error):
                    raise
                if self._required:
                    raise self._without_room(error) from error
                log.warning("%s; activations are harvested into memory from here on", error.strerror)
                self._writing = False
        return store.holds(part, number, count)

    def _without_room(self, error: OSError) -> OSError:
        return OSError(
            f"{error.strerror}; what was harvested so far is kept in {self._room.folder}. Free space (`python -m "
            "fsae.store list` says what takes it) or raise source.cache_gb, and start the same command again"
        )

    def _make(self, part: Part, number: int, leading: Sequence[Site]) -> bool:
        """Harvest a shard where one of the leading sites misses it and no other process is at it; whether it did."""
        count = self.extent.count(part, number)
        with ExitStack() as locks:

            def is_ours(site: Site) -> bool:
                store = self._stores[site]
                return (
                    not store.holds(part, number, count)
                    and locks.enter_context(store.lock(part, number))
                    # Somebody may have finished it between the two.
                    and not store.holds(part, number, count)
                )

            ours = [site for site in self._stores if is_ours(site)]
            if not set(leading) & set(ours):
                return False
            model = self.harvester.model
            sizes = {site: shard_bytes(count, model.width(site), self._dtype, self._labelled) for site in ours}
            # Before the work; when it is written others may have taken the room meanwhile.
            self._room.require(sum(sizes.values()))
            for site in ours:
                # With the folder the store is kept from being pruned.
                self._stores[site].create(
                    Manifest(
                        content=self._contents[site],
                        d_in=model.width(site),
                        prepends_bos=self.harvester.prepends_bos,
                    )
                )
            harvested = self._harvest(part, number, count, ours)
            names = sum(len(name.encode()) + 8 for name in harvested.label_names)
            for site in ours:
                with self._room.taken(sizes[site] + 2 * names):
                    self._stores[site].write(
                        part,
                        number,
                        harvested.shards[site],
                        text=harvested.text,
                        text_ended=harvested.text_ended,
                        distinct=harvested.distinct,
                        skipped_rows=harvested.skipped_rows,
                        label_names=harvested.label_names,
                    )
                self.made += 1
        return True

    def _harvest(self, part: Part, number: int, count: int, sites: Sequence[Site]) -> Harvested:
        return self.harvester.harvest(part, number, count, sites, partial(self._nearest_text, part, number))

    def _nearest_text(self, part: Part, number: int) -> tuple[int, dict[str, Any]] | None:
        """The latest shard, up to this one, that a store knows the text's position before, and that position."""
        for earlier in range(number - 1, -1, -1):
            for store in self._stores.values():
                text = store.text_after(part, earlier)
                if text is not None:
                    return earlier + 1, text
        return None

    def _discard_damaged(self, store: ActivationStore, part: Part, number: int) -> None:
        with store.lock(part, number) as ours:
            if ours:
                try:
                    # Another process may have mended it meanwhile.
                    store.read(part, number)
                except DamagedShard as damage:
                    log.warning("%s; it is harvested again", damage)
                    store.discard(part, number)


class _Waiting:
    """Sleeps a moment at a time, and says now and then what for."""

    def __init__(self, shards: Shards):
        self._shards, self._said = shards, float("-inf")

    def a_moment(self, part: Part, number: int) -> None:
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            log.info(
                "waiting for the process that harvests %s: %s shard %d of %d",
                self._shards.site, part.value, number + 1, self._shards.extent.shards(part),
            )  # fmt: skip
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        self._shards.harvester.beat()


def _beginning(shard: Shard, part: Part, number: int, count: int) -> Shard:
    """The first `count` vectors of the text in a shard, in the order in which a shard of just those would be."""
    if len(shard) <= count:
        return shard
    places = torch.argsort(order_in_shard(part, number, len(shard)))
    rows = places[order_in_shard(part, number, count)]
    return Shard(
        activations=shard.activations[rows],
        tokens=shard.tokens[rows],
        documents=shard.documents[rows],
        labels=None if shard.labels is None else shard.labels[rows],
    )

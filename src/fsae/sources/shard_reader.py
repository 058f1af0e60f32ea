"""The shards of a stream, from the store if it has them, otherwise from the language model."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack

from fsae.language_models.sites import Site
from fsae.progress import SECONDS_BETWEEN_LINES
from fsae.sources.activation_store import ActivationStore, DamagedShard, is_full, shard_bytes
from fsae.sources.harvest import Harvested, Harvester
from fsae.sources.room import Room
from fsae.sources.shard import Extent, Part, Shard
from fsae.sources.shard_text import TextPosition

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.1


class ShardReader:
    """Reader of the shards of one site, or of several that are read together.

    It has missing shards harvested, and writes them to the store if it has room.
    Several processes may do so at the same time on one store: each missing shard is harvested by the process that gets
    its lock. A process that waits for a shard harvests a later one meanwhile.

    Args:
        harvester: runs the language model.
        sites: the sites whose shards are read, side by side.
        stores: of this site, and of others to fill from the same forward passes; empty to keep nothing on disk.
        extent: the number of shards and their sizes.
        room: the room for missing shards on disk; None to harvest them into memory.

    Attributes:
        made: shards that this reader wrote to stores.
    """

    def __init__(
        self,
        harvester: Harvester,
        sites: Sequence[Site],
        stores: dict[Site, ActivationStore],
        extent: Extent,
        room: Room | None,
    ):
        assert not stores or stores.keys() >= set(sites)
        self.harvester, self.sites, self.extent = harvester, list(sites), extent
        self._stores, self._room = stores, room if stores else None
        # What a shard's text is, every site's store knows.
        self._store = stores.get(self.sites[0])
        self.made = 0

    @property
    def prepends_bos(self) -> bool:
        """True if each row of text begins with a BOS; opens the language model if the store does not know."""
        if self._store is not None and self._store.manifest is not None:
            return self._store.manifest.prepends_bos
        return self.harvester.corpus.prepends_bos

    def shard(self, part: Part, number: int) -> Shard:
        """Return one shard, once it exists.

        Raises:
            ValueError: activations that are not finite, or no memory for them.
            OSError: no room for a shard that must be written.
        """
        stored = [self._stored(self._stores[site], part, number) for site in self.sites if site in self._stores]
        whole = [shard for shard in stored if shard is not None]
        if len(whole) < len(self.sites):
            harvested = self._harvest(part, number, self.sites).shards
            whole = [harvested[site] for site in self.sites]
        return Shard.joined(whole)

    def _stored(self, store: ActivationStore, part: Part, number: int) -> Shard | None:
        """Return one site's shard from its store, once it exists; None if it has to be harvested into memory."""
        while self._await(store, part, number):
            try:
                return store.read(part, number).beginning(part, number, self.extent.count(part, number))
            except DamagedShard:
                self._discard_damaged(store, part, number)
        return None

    def fill(self) -> None:
        """Put every shard of every site into its store, together with the other processes that do the same.

        Raises:
            ValueError: activations that are not finite, or no memory for them.
            OSError: no room.
        """
        assert self._room is not None
        waiting = _Waiting(self)
        try:
            while wanted := [place for store in self._stores.values() for place in store.missing(self.extent)]:
                if not any(self._make(part, number, list(self._stores), self._room) for part, number in wanted):
                    waiting.a_moment(*wanted[0])
        except OSError as error:
            if is_full(error):
                raise self._without_room(error, self._room) from error
            raise

    def distinct(self, part: Part, count: int) -> int:
        """Return how many of a part's first `count` vectors are from the first pass over the text.

        All vectors of a shard count if the number is not known.
        """
        total = 0
        for number in range(min(self.extent.shards(part), -(-count // self.extent.shard_tokens))):
            known = self.harvester.distinct(part, number)
            if known is None and self._store is not None and (record := self._store.record(part, number)):
                known = record.distinct
            here = min(self.extent.count(part, number), count - number * self.extent.shard_tokens)
            total += here if known is None else min(known, here)
            if known is not None and known < here:
                break
        return total

    @property
    def skipped_rows(self) -> int:
        """Rows of the data set without a document, in one pass over it, as far as it was read."""
        store = self._store
        records = [store.record(*place) for place in store.shards()] if store else []
        return max([self.harvester.skipped_rows, *(record.skipped_rows for record in records if record is not None)])

    def held_out_count(self) -> int | None:
        """Return the number of held-out vectors in the store if no more exist or no more are wanted; else None."""
        if self._store is None:
            return None
        total = 0
        for number in range(self.extent.shards(Part.held_out)):
            record = self._store.record(Part.held_out, number)
            if record is None:
                return None
            total += min(record.count, self.extent.count(Part.held_out, number))
            if record.text_ended:
                break
        return total

    def close(self) -> None:
        """Let other processes prune the stores."""
        for store in self._stores.values():
            store.close()

    def _await(self, store: ActivationStore, part: Part, number: int) -> bool:
        """Return True once the store holds a shard; False if the shard has to be harvested into memory."""
        waiting = _Waiting(self)
        while (room := self._room) is not None:
            try:
                # For the other sites too, if this site has the shard already.
                if self._make(part, number, list(self._stores), room):
                    continue
                if store.holds(part, number, self.extent.count(part, number)):
                    return True
                later = range(number + 1, self.extent.shards(part))
                if not any(self._make(part, another, self.sites, room) for another in later):
                    waiting.a_moment(part, number)
            except OSError as error:
                if not is_full(error):
                    raise
                if room.required:
                    raise self._without_room(error, room) from error
                log.warning("%s; activations are harvested into memory from here on", error.strerror)
                self._room = None
        return store.holds(part, number, self.extent.count(part, number))

    @staticmethod
    def _without_room(error: OSError, room: Room) -> OSError:
        return OSError(
            f"{error.strerror}; what was harvested so far is kept in {room.folder}. Free space (`python -m "
            "fsae.store list` says what takes it) or raise source.cache_gb, and start the same command again"
        )

    def _make(self, part: Part, number: int, leading: Sequence[Site], room: Room) -> bool:
        """Harvest a shard into the stores if one of the leading sites misses it and no other process harvests it.

        Returns:
            Whether it was harvested.
        """
        count = self.extent.count(part, number)
        with ExitStack() as locks:

            def is_ours(site: Site) -> bool:
                store = self._stores[site]
                return (
                    not store.holds(part, number, count)
                    and locks.enter_context(store.lock(part, number))
                    # Another process may have finished it between the check and the lock.
                    and not store.holds(part, number, count)
                )

            ours = [site for site in self._stores if is_ours(site)]
            if not set(leading) & set(ours):
                return False
            corpus = self.harvester.corpus
            model = corpus.model
            sizes = {site: shard_bytes(count, model.width(site), model.dtype, corpus.labelled) for site in ours}
            # Checked before the work, and again on writing: other processes may take the room meanwhile.
            room.require(sum(sizes.values()))
            for site in ours:
                # Once its folder exists, the store is protected from being pruned.
                self._stores[site].create(d_in=model.width(site), prepends_bos=corpus.prepends_bos)
            harvested = self._harvest(part, number, ours)
            names = sum(len(name.encode()) + 8 for name in harvested.label_names)
            for site in ours:
                with room.taken(sizes[site] + 2 * names):
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

    def _harvest(self, part: Part, number: int, sites: Sequence[Site]) -> Harvested:
        known = None if self.harvester.is_before(part, number) else self._nearest_text(part, number)
        return self.harvester.harvest(part, number, self.extent.count(part, number), sites, known)

    def _nearest_text(self, part: Part, number: int) -> TextPosition | None:
        """Return the nearest position at or before the beginning of a shard that a store knows."""
        for earlier in range(number - 1, -1, -1):
            for store in self._stores.values():
                text = store.text_after(part, earlier)
                if text is not None:
                    return TextPosition(earlier + 1, text)
        return None

    def _discard_damaged(self, store: ActivationStore, part: Part, number: int) -> None:
        with store.lock(part, number) as ours:
            if ours:
                try:
                    # Another process may have harvested it again meanwhile.
                    store.read(part, number)
                except DamagedShard as damage:
                    log.warning("%s; it is harvested again", damage)
                    store.discard(part, number)


class _Waiting:
    """Waiting for a shard of another process, in short sleeps, with a log line now and then."""

    def __init__(self, reader: ShardReader):
        self._reader, self._logged = reader, float("-inf")

    def a_moment(self, part: Part, number: int) -> None:
        if time.monotonic() - self._logged >= SECONDS_BETWEEN_LINES:
            self._logged = time.monotonic()
            log.info(
                "waiting for the process that harvests %s: %s shard %d of %d",
                " + ".join(map(str, self._reader.sites)), part.value, number + 1, self._reader.extent.shards(part),
            )  # fmt: skip
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        self._reader.harvester.beat()

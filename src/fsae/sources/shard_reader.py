"""The shards of a stream, from the store if it has them, otherwise from the language model."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
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
# Harvests of which a shard is kept in memory for other streams. Streams that step in turn are at most one shard apart.
_HARVESTS_IN_MEMORY = 2


class ShardReader:
    """Reader of the shards of one stream, or of several streams at different sites that share each forward pass.

    It has missing shards harvested, and writes them to the store if it has room. Without room, a training shard is
    kept in memory until every stream that reads its site has taken it.
    Several processes may do so at the same time on one store: each missing shard is harvested by the process that gets
    its lock. A process that waits for a shard harvests a later one meanwhile.

    Args:
        harvester: runs the language model.
        streams: the sites of each stream, whose shards are read side by side.
        stores: of these sites, and of others to fill from the same forward passes; empty to keep nothing on disk.
        extent: the number of shards and their sizes.
        room: the room for missing shards on disk; None to harvest them into memory.

    Attributes:
        made: shards that this reader wrote to stores.
    """

    def __init__(
        self,
        harvester: Harvester,
        streams: Sequence[Sequence[Site]],
        stores: dict[Site, ActivationStore],
        extent: Extent,
        room: Room | None,
    ):
        self.harvester, self.streams, self.extent = harvester, [tuple(sites) for sites in streams], extent
        self._readers = Counter(site for sites in self.streams for site in sites)
        assert not stores or stores.keys() >= self._readers.keys()
        self._stores, self._room = stores, room if stores else None
        self._in_memory: dict[tuple[Part, int], _Kept] = {}
        # Each stream fetches shards in a thread of its own, and a part's text has one position.
        self._one_at_a_time = {part: threading.Lock() for part in Part}
        # What a shard's text is, every site's store knows.
        self._store = stores.get(self.streams[0][0])
        self.made = 0

    @property
    def prepends_bos(self) -> bool:
        """True if each row of text begins with a BOS; opens the language model if the store does not know."""
        if self._store is not None and self._store.manifest is not None:
            return self._store.manifest.prepends_bos
        return self.harvester.corpus.prepends_bos

    def shard(self, part: Part, number: int, sites: Sequence[Site] | None = None) -> Shard:
        """Return one shard of a stream, once it exists.

        Args:
            part, number: the shard.
            sites: of the stream; None if there is one stream.

        Raises:
            ValueError: activations that are not finite, or no memory for them.
            OSError: no room for a shard that must be written.
        """
        if sites is None:
            (sites,) = self.streams
        with self._one_at_a_time[part]:
            found = {site: self._stored(site, part, number) for site in sites if site in self._stores}
            stored = {site: shard for site, shard in found.items() if shard is not None}
            missing = [site for site in sites if site not in stored]
            harvested = self._from_memory(part, number, missing) if missing else {}
            return Shard.joined([stored[site] if site in stored else harvested[site] for site in sites])

    def _from_memory(self, part: Part, number: int, sites: Sequence[Site]) -> Mapping[Site, Shard]:
        """Return shards that no store has, for one stream."""
        if part is Part.held_out:
            # Streams are evaluated one after the other, with all held-out shards between their visits of this one.
            return self._harvest(part, number, sites).shards
        kept = self._in_memory.get((part, number))
        if kept is None or not kept.has(sites):
            wanted = [site for site in self._readers if site in sites or not self._holds(site, part, number)]
            kept = _Kept(self._harvest(part, number, wanted).shards, self._readers)
            self._in_memory[part, number] = kept
        taken = kept.take(sites)
        self._in_memory = dict([each for each in self._in_memory.items() if each[1].shards][-_HARVESTS_IN_MEMORY:])
        return taken

    def _holds(self, site: Site, part: Part, number: int) -> bool:
        return site in self._stores and self._stores[site].holds(part, number, self.extent.count(part, number))

    def _stored(self, site: Site, part: Part, number: int) -> Shard | None:
        """Return one site's shard from its store, once it exists; None if it has to be harvested into memory."""
        store = self._stores[site]
        while self._await(site, part, number):
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
        waiting = _Waiting(self, list(self._stores))
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

    def _await(self, site: Site, part: Part, number: int) -> bool:
        """Return True once a site's store holds a shard; False if the shard has to be harvested into memory."""
        waiting = _Waiting(self, [site])
        while (room := self._room) is not None:
            try:
                # For the other sites too, if this site has the shard already.
                if self._make(part, number, list(self._stores), room):
                    continue
                if self._holds(site, part, number):
                    return True
                later = range(number + 1, self.extent.shards(part))
                if not any(self._make(part, another, list(self._readers), room) for another in later):
                    waiting.a_moment(part, number)
            except OSError as error:
                if not is_full(error):
                    raise
                if room.required:
                    raise self._without_room(error, room) from error
                log.warning("%s; activations are harvested into memory from here on", error.strerror)
                self._room = None
        return self._holds(site, part, number)

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
            dtype, widths = corpus.model.dtype, {site: corpus.width(site) for site in ours}
            sizes = {site: shard_bytes(count, widths[site], dtype, corpus.labelled) for site in ours}
            # Checked before the work, and again on writing: other processes may take the room meanwhile.
            room.require(sum(sizes.values()))
            for site in ours:
                # Once its folder exists, the store is protected from being pruned.
                self._stores[site].create(d_in=widths[site], prepends_bos=corpus.prepends_bos)
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


class _Kept:
    """Shards of one harvest, each until all streams that read its site have taken it.

    Attributes:
        shards: by site; those that some stream has not taken yet.
    """

    def __init__(self, shards: Mapping[Site, Shard], readers: Mapping[Site, int]):
        self.shards, self._readers = dict(shards), Counter({site: readers[site] for site in shards})

    def has(self, sites: Sequence[Site]) -> bool:
        return self.shards.keys() >= set(sites)

    def take(self, sites: Sequence[Site]) -> dict[Site, Shard]:
        taken = {site: self.shards[site] for site in sites}
        self._readers.subtract(sites)
        self.shards = {site: shard for site, shard in self.shards.items() if self._readers[site] > 0}
        return taken


class _Waiting:
    """Waiting for a shard of another process, in short sleeps, with a log line now and then."""

    def __init__(self, reader: ShardReader, sites: Sequence[Site]):
        self._reader, self._sites, self._logged = reader, sites, float("-inf")

    def a_moment(self, part: Part, number: int) -> None:
        if time.monotonic() - self._logged >= SECONDS_BETWEEN_LINES:
            self._logged = time.monotonic()
            log.info(
                "waiting for the process that harvests %s: %s shard %d of %d",
                " + ".join(map(str, self._sites)), part.value, number + 1, self._reader.extent.shards(part),
            )  # fmt: skip
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        self._reader.harvester.beat()

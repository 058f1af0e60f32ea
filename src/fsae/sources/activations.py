"""Activations of a language model at one site as a stream of shuffled batches."""

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.devices import device_of, dtype_of, rows_at_once
from fsae.files import digest_of
from fsae.language_models.identity import model_identity
from fsae.language_models.settings import ModelSettings
from fsae.language_models.shape import shape_of
from fsae.language_models.sites import Site
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model
from fsae.ranges import COUNT, POSITIVE, between
from fsae.seeds import generator_for
from fsae.sources.activation_store import ActivationStore, shard_bytes
from fsae.sources.documents import DatasetSettings, Part, dataset_identity, open_documents
from fsae.sources.harvest import Harvester, require_memory
from fsae.sources.massive import norm_limit, within
from fsae.sources.shard_reader import Extent, Room, Shards
from fsae.sources.source import Batch, Request, SourceSettings, in_batches
from fsae.sources.supply import Supply
from fsae.sources.tokens import PackedTokens

log = logging.getLogger(__name__)

# The one that training is in and the one that is fetched meanwhile.
SHARDS_IN_MEMORY = 2
# With cache=auto a store takes at most this share of what the disk has left.
_SHARE_OF_FREE_DISK = 0.5
# Held-out positions that are counted at a run's beginning, to find out whether there are enough.
_HELD_OUT_COUNTED = 100_000


class Cache(Enum):
    """Whether harvested activations are kept on disk.

    Attributes:
        auto: where there is room: at most half of what is free, and within `source.cache_gb`.
        disk: always; a run that has no room for them is refused.
        none: never.
    """

    auto = "auto"
    disk = "disk"
    none = "none"


@dataclass(frozen=True, kw_only=True)
class ActivationSourceSettings(SourceSettings):
    """Which activations are trained on, in which order, and where they are kept. What is kept decides no numbers.

    Attributes:
        tokens: distinct activations; training goes round them again, each time in a new order. Null for as many as
            training takes.
        shard_tokens: activations a shard. Two shards are in memory at a time, and the shuffle reaches through one.
        cache: whether activations are kept on disk for other runs.
        cache_gb: what the folder of all stores may take; null for no limit but the disk's.
        also: other sites, "mlp_out.5", whose activations are kept from the same forward passes.
        worker: a number that tells apart jobs which harvest together; it decides nothing.
        max_norm_multiple: vectors whose norm is more than this many times the median are left out of training and
            evaluation, and the splice leaves them as they are. Null keeps them. The store holds them either way.
        max_norm: the limit itself, in the place of that multiple. Null for the multiple's, or in task=eval the one that
            the autoencoder says (`max_activation_norm` in its cfg.json).

    Raises:
        ValueError: a number out of range, a site that does not read "name.layer", other sites without a cache.
    """

    tokens: int | None = field(default=None, metadata=COUNT)
    shard_tokens: int = field(default=262_144, metadata=COUNT)
    cache: Cache = Cache.auto
    cache_gb: float | None = field(default=None, metadata=POSITIVE)
    also: list[str] = field(default_factory=list)
    worker: int = field(default=0, metadata=between(least=0, most=10**6))
    max_norm_multiple: float | None = field(
        default=10.0, metadata=between(above=1, most=10**9, meaning="a multiple of the median norm")
    )
    max_norm: float | None = field(default=None, metadata=between(above=0, most=1e12))

    def __post_init__(self):
        super().__post_init__()
        if self.also and self.cache is Cache.none:
            raise ValueError("source.also names sites to keep, and source.cache is none; use disk or auto")
        self.other_sites()

    def other_sites(self) -> list[Site]:
        """`also`, read.

        Raises:
            ValueError: one does not read "name.layer".
        """
        try:
            return [Site.parse(text) for text in self.also]
        except ValueError as error:
            raise ValueError(f"source.also: {error}") from None

    def distinct_tokens(self, training_tokens: int) -> int:
        """`tokens`, or what training takes."""
        return training_tokens if self.tokens is None else self.tokens

    def open(self, request: Request, heartbeat: Callable[[], None]) -> "ActivationSource":
        model, site, dataset = request.text()
        return open_activations(
            model=model,
            site=site,
            dataset=dataset,
            # A harvest that may not keep its activations has nothing to do.
            source=replace(self, cache=Cache.disk) if request.harvest else self,
            training_tokens=request.training_samples,
            held_out_tokens=request.held_out_samples,
            folder=request.stores,
            heartbeat=heartbeat,
            spliced=request.spliced,
        )

    def stream_key(self, request: Request) -> Hashable:
        model, site, dataset = request.text()
        tokens = self.distinct_tokens(request.training_samples)
        # Text for what holds lists, which cannot be part of a key.
        limit = self.max_norm_multiple, self.max_norm
        return model, site, repr(dataset), tokens, self.shard_tokens, self.seed, limit, tuple(self.also)


class _Fetched(NamedTuple):
    """A shard in memory, and which of its vectors are not massive; None for all of them."""

    vectors: Float[Tensor, "vectors d_in"]
    kept: Int[Tensor, " kept"] | None


class ActivationSource:
    """Shuffled activations of a language model at one site.

    Training goes round the shards: in their order the first time, so that it can begin while later ones are harvested,
    and in one drawn from (seed, epoch) afterwards; each visit to a shard permutes it anew, by (seed, epoch, shard). The
    next shard is fetched in the background. A position is therefore two counters, and the stream does not depend on
    whether its shards come from the store. In the place of a massive vector stands another one of its shard, so that
    every shard has as many vectors as it would have without them.

    Args:
        shards: of both parts.
        d_in: width of the vectors.
        seed: of the order.
        training_tokens: vectors that training will take; nothing is fetched for after them.
        device: where batches are wanted.
        passes: what the device decided of the language model's forward passes, which the vectors depend on: dtype and
            rows. A position in a stream of others is refused.
        max_norm_multiple: beyond how many times the median norm a vector is massive and left out; None for no limit.
        max_norm: the limit itself, in the place of that multiple.

    Attributes:
        waited: seconds that nothing else could be done in, as the next shard was not there yet.
        held_out_found: held-out vectors in the last pass over them, those that it left out for their norm among them.
        massive_share: share of these that it left out.
    """

    unit = "tokens"

    def __init__(
        self,
        shards: Shards,
        *,
        d_in: int,
        seed: int,
        training_tokens: int,
        device: torch.device,
        passes: dict[str, Any],
        max_norm_multiple: float | None,
        max_norm: float | None = None,
    ):
        self.d_in, self.device, self._passes = d_in, device, passes
        self._max_norm_multiple = max_norm_multiple
        self._norm_limit = max_norm
        self.held_out_found = 0
        self.massive_share = 0.0
        self._shards, self._seed, self._training_tokens = shards, seed, training_tokens
        self._extent = shards.extent
        self._epoch = self._batch = 0
        self.waited = 0.0
        self._fetched: dict[int, Future[_Fetched]] = {}
        # Its cores are those of this thread, whatever others are given while it begins.
        self._background = ThreadPoolExecutor(1, "harvest", torch.set_num_threads, (torch.get_num_threads(),))

    def __enter__(self) -> "ActivationSource":
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop what goes on in the background."""
        self.harvester.stop()
        self._background.shutdown(cancel_futures=True)
        self._fetched.clear()
        self._shards.close()

    @property
    def model(self) -> TransformerLensModel:
        """The language model, opened on first use."""
        return self.harvester.model

    @property
    def prepends_bos(self) -> bool:
        """Whether each row of text begins with a BOS."""
        return self._shards.prepends_bos

    @property
    def harvester(self) -> Harvester:
        """Which knows how long the language model's work has taken so far; part of it goes on during training."""
        return self._shards.harvester

    @property
    def norm_limit(self) -> float | None:
        """The norm beyond which a vector is massive, by the median of the first shard that there is; None for no limit.

        One number for the whole run: training, evaluation and splice leave out the same vectors.
        """
        if self._max_norm_multiple is not None and self._norm_limit is None:
            if self._extent.tokens[Part.train]:
                self._vectors(0)
            else:
                self._find_limit(self._shards.shard(Part.held_out, 0).activations)
        return self._norm_limit

    def _find_limit(self, first_vectors: Tensor) -> None:
        assert self._max_norm_multiple is not None
        self._norm_limit = norm_limit(first_vectors, self._max_norm_multiple)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "batch": self._batch, "passes": self._passes, "norm_limit": self._norm_limit}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position.

        Raises:
            ValueError: it is one in vectors that were harvested otherwise.
        """
        if state["passes"] != self._passes:
            was, now = ("{dtype}, {rows} rows a pass".format(**each) for each in (state["passes"], self._passes))
            raise ValueError(
                f"the run began on activations that were harvested in {was}, and here it would be {now}: go on with it "
                "on a device like its own, or begin anew with model.dtype={dtype} model.batch_size={rows}".format(
                    **state["passes"]
                )
            )
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._norm_limit = state["norm_limit"]

    def first_vectors(self) -> Float[Tensor, "vectors d_in"]:
        vectors, kept = self._vectors(0)
        return vectors if kept is None else vectors[kept]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        # What does not fill a batch at an epoch's end is left out; at a shard's end it is joined with the next one's.
        size = self._extent.tokens[Part.train] // batch_size * batch_size
        if size == 0:
            raise ValueError(
                f"trainer.batch_size is {batch_size}, more than the {self._extent.tokens[Part.train]} vectors there "
                "are; raise source.tokens"
            )
        # Training takes whole batches.
        taken = self._training_tokens // batch_size * batch_size
        while True:
            row, parts = self._batch * batch_size, []
            visits = list(self._visits(self._epoch))
            following = [*visits[1:], (*next(self._visits(self._epoch + 1))[:1], size)]
            for (number, begin), (next_number, next_begin) in zip(visits, following, strict=True):
                end = min(size, begin + self._extent.count(Part.train, number))
                if row >= end:
                    continue
                vectors, kept = self._vectors(number)
                if self._epoch * size + next_begin < taken:
                    self._fetch(next_number, beside=number)
                # At once: a copy for each batch would have the host wait for the device.
                order = _permutation(self._extent.count(Part.train, number), self._seed, self._epoch, number)
                order = order.to(vectors.device)
                if kept is not None:
                    order = kept[order % len(kept)]
                while row < end:
                    missing = batch_size - sum(map(len, parts))
                    places = order[row - begin : min(row + missing, end) - begin]
                    parts.append(vectors.index_select(0, places))
                    row += len(places)
                    if len(places) == missing:
                        # Counted before it is handed out: a state taken while it is in use names the next one.
                        self._batch += 1
                        batch = parts[0] if len(parts) == 1 else torch.cat(parts)
                        parts = []
                        yield Batch(batch, batch)
            self._epoch, self._batch = self._epoch + 1, 0

    def held_out(self, count: int, batch_size: int) -> Iterator[Batch]:
        for batch in in_batches(self._held_out(count), batch_size):
            vectors = batch.to(self.device)
            yield Batch(vectors, vectors)

    def distinct(self, taken: int) -> int:
        return self._shards.distinct(Part.train, self.wanted(taken))

    def wanted(self, taken: int) -> int:
        """How many different ones `taken` training vectors would be if there were text enough."""
        return min(taken, self._extent.tokens[Part.train])

    @property
    def skipped_rows(self) -> int:
        """Rows of the data set that held no document and were left out, in one pass as far as it was read."""
        return self._shards.skipped_rows

    def _held_out(self, count: int) -> Iterator[Float[Tensor, "part d_in"]]:
        assert count <= self._extent.tokens[Part.held_out]
        limit, seen, left_out = self.norm_limit, 0, 0
        for number in range(self._extent.shards(Part.held_out)):
            vectors = self._shards.shard(Part.held_out, number).activations[:count]
            count -= len(vectors)
            seen += len(vectors)
            kept = vectors if limit is None else vectors[within(vectors, limit)]
            left_out += len(vectors) - len(kept)
            yield kept
            if len(vectors) < self._extent.count(Part.held_out, number):
                break
        self.held_out_found, self.massive_share = seen, left_out / max(1, seen)

    def held_out_rows(self, count: int) -> tuple[Int[Tensor, "row context"], Bool[Tensor, "row context"]]:
        """The first rows of held-out text that have at least `count` tokens between them (fewer if there are no more).

        Raises:
            ValueError: the held-out part is empty or shorter than one row.
        """
        return self.harvester.held_out_rows(count)

    def fill_store(self) -> dict[str, float]:
        """Put every shard of both parts and all sites into the store, beside other processes that do the same.

        Returns:
            What this process did: `harvest/shards`, `harvest/tokens`, `harvest/seconds`.

        Raises:
            OSError: no room.
        """
        self._shards.fill()
        return {
            "harvest/shards": self._shards.made,
            "harvest/tokens": self.harvester.tokens,
            "harvest/seconds": self.harvester.seconds,
        }

    def _visits(self, epoch: int) -> Iterator[tuple[int, int]]:
        """The shards in an epoch's order, each with its first row in that order."""
        shards, begin = self._extent.shards(Part.train), 0
        for number in range(shards) if epoch == 0 else _permutation(shards, self._seed, epoch).tolist():
            yield number, begin
            begin += self._extent.count(Part.train, number)

    def _vectors(self, number: int) -> _Fetched:
        self._fetch(number, beside=number)
        began = time.monotonic()
        vectors = self._fetched[number].result()
        self.waited += time.monotonic() - began
        return vectors

    def _fetch(self, number: int, beside: int) -> None:
        """Begin to bring a shard into memory, where it takes the place of another one than `beside`."""
        if number not in self._fetched:
            others = [there for there in self._fetched if there != beside]
            if len(self._fetched) == SHARDS_IN_MEMORY:
                del self._fetched[others[0]]
            self._fetched[number] = self._background.submit(self._load, number)

    def _load(self, number: int) -> _Fetched:
        vectors = self._shards.shard(Part.train, number).activations.to(self.device)
        if self._norm_limit is None and self._max_norm_multiple is not None:
            # The first shard is read first, and a position knows the limit of the stream that it is in.
            assert number == 0
            self._find_limit(vectors)
        if self._norm_limit is None:
            return _Fetched(vectors, None)
        kept = within(vectors, self._norm_limit)
        if kept.all():
            return _Fetched(vectors, None)
        if not kept.any():
            raise ValueError(
                f"every activation of shard {number} has a norm beyond {self._norm_limit:.4g} (source.max_norm, or "
                "source.max_norm_multiple times the median of the first shard): one limit does not suit this text; set "
                "both to null"
            )
        return _Fetched(vectors, kept.nonzero().squeeze(1))


def open_activations(
    *,
    model: ModelSettings,
    site: Site,
    dataset: DatasetSettings,
    source: ActivationSourceSettings,
    training_tokens: int,
    held_out_tokens: int,
    folder: Path,
    heartbeat: Callable[[], None],
    spliced: bool = False,
) -> ActivationSource:
    """The activations that these settings describe; says where they come from and what they take.

    The language model is opened only when something has to be harvested.

    Args:
        training_tokens: vectors that training takes; 0 where there is none.
        held_out_tokens: vectors that the evaluation takes.
        folder: of all activation stores.
        heartbeat: called after each forward pass; may raise to stop.
        spliced: whether the evaluation puts reconstructions back into the model.

    Raises:
        ValueError: a model, data set or site that is not there, a store of another format.
        OSError: source.cache is disk and there is no room.
    """

    def open_text(opened: TransformerLensModel, part: Part) -> PackedTokens:
        return PackedTokens(
            open_documents(dataset, part),
            opened,
            rows=rows_at_once(model, dataset.tokens_per_row),
            context=dataset.tokens_per_row,
            skip_positions=dataset.skip_positions,
            exclude_special_tokens=dataset.exclude_special_tokens,
            prepend_bos=dataset.prepend_bos,
            repeat=part is Part.train,
            exclude_tokens=dataset.exclude_tokens,
            prefix=dataset.prefix,
            chat_roles=dataset.chat_roles,
        )

    device = device_of(model)
    harvester = Harvester(partial(open_language_model, model), open_text, source.shard_tokens, heartbeat)
    extent = Extent(
        tokens={
            Part.train: source.distinct_tokens(training_tokens) if training_tokens else 0,
            Part.held_out: held_out_tokens,
        },
        shard_tokens=source.shard_tokens,
    )
    contents = {} if source.cache is Cache.none else _contents(model, [site, *source.other_sites()], dataset, source)
    stores = {
        each: ActivationStore(folder / _folder_name(model, each, dataset, content), content)
        for each, content in contents.items()
    }
    if any(next(extent.missing(store), None) for store in stores.values()) or not stores:
        # Before the model is opened, which may take minutes: can the text be read?
        for part in [Part.train, Part.held_out] if extent.tokens[Part.train] else [Part.held_out]:
            next(open_documents(dataset, part))
    shape = shape_of(model) or harvester.model.shape
    dtype = dtype_of(model)
    room = Room(folder=folder, limit_gb=source.cache_gb)
    labelled = dataset.label_column is not None

    def size(each: Site) -> Callable[[int], int]:
        return lambda count: shard_bytes(count, shape.width(each), dtype, labelled)

    missing = sum(extent.missing_bytes(store, size(each)) for each, store in stores.items())
    writing = _is_written(source.cache, missing, room)
    in_store = bool(stores) and missing == 0
    if in_store:
        log.info(
            "activations from the store, nothing harvested: %s to train on and %s held out, %.3g GB in %s",
            f"{extent.tokens[Part.train]:,}", f"{held_out_tokens:,}", stores[site].bytes() / 1e9, stores[site].folder,
        )  # fmt: skip
    else:
        count = min(source.shard_tokens, max(extent.tokens.values()))
        require_memory(count, shape.width(site), dtype, max(1, len(stores)))
    shards = Shards(
        harvester,
        site,
        stores,
        contents,
        extent,
        dtype,
        room,
        labelled=labelled,
        writing=writing,
        required=source.cache is Cache.disk,
    )
    result = ActivationSource(
        shards,
        # As it was seen, where there is a model: a config.json may leave out the width of heads.
        d_in=shape.width(site) if in_store else harvester.model.width(site),
        seed=source.seed,
        training_tokens=training_tokens,
        device=device,
        passes=_passes(model, dataset),
        max_norm_multiple=source.max_norm_multiple,
        max_norm=source.max_norm,
    )
    if not in_store:
        # Before the hours of training, not after them: is the site there, and held-out text?
        for each in [site, *source.other_sites()]:
            harvester.model.check_site(each)
        if spliced:
            harvester.model.check_splice(site)
        counted = min(held_out_tokens, _HELD_OUT_COUNTED)
        held_out = harvester.held_out_positions(counted)
        if held_out == 0:
            raise ValueError(
                f"data set {dataset.name}: its held-out text has no position to evaluate on; give it more text, or "
                f"raise dataset.held_out, which is {dataset.held_out}"
            )
        if not writing:
            _say_memory(extent, size(site), training_tokens)
    else:
        counted, held_out = held_out_tokens, shards.held_out_count() or 0
    there = Supply(
        held_out=held_out if held_out < counted else held_out_tokens,
        held_out_wanted=held_out_tokens,
        distinct=result.distinct(training_tokens) if in_store else None,
        wanted=result.wanted(training_tokens),
    )
    for sentence in there.shortages():
        log.warning("%s", sentence)
    return result


def _contents(
    model: ModelSettings, sites: list[Site], dataset: DatasetSettings, source: ActivationSourceSettings
) -> dict[Site, dict[str, Any]]:
    """Everything that determines a store's vectors, by site; the count is no part of it, as shards do not depend on how
    many there are. Rows of a forward pass are: they decide where a shard ends, and the last bits."""
    text = {
        name: value.name if isinstance(value, Enum) else value
        for name, value in asdict(dataset).items()
        if name not in ("path", "context", "max_invalid_rows") and not (name == "prepend_bos" and value is None)
    }
    text["context"] = dataset.tokens_per_row
    shared = {
        "model": model_identity(model),
        **_passes(model, dataset),
        "dataset": text | dataset_identity(dataset),
        "shard_tokens": source.shard_tokens,
    }
    return {site: shared | {"site": str(site)} for site in dict.fromkeys(sites)}


def _passes(model: ModelSettings, dataset: DatasetSettings) -> dict[str, Any]:
    return {
        "dtype": str(dtype_of(model)).removeprefix("torch."),
        "rows": rows_at_once(model, dataset.tokens_per_row),
    }


def _folder_name(model: ModelSettings, site: Site, dataset: DatasetSettings, content: dict[str, Any]) -> str:
    return f"{model.name}-{site}-{dataset.name}-{digest_of(content)}"


def _is_written(cache: Cache, missing: int, room: Room) -> bool:
    """Whether missing shards go to the store; says what they take, or why not.

    Raises:
        OSError: they must, and there is no room.
    """
    if cache is Cache.none or missing == 0:
        return cache is not Cache.none
    reason = None
    try:
        room.require(missing)
        if cache is Cache.auto and missing > _SHARE_OF_FREE_DISK * room.free():
            reason = f"that is more than half of the {room.free() / 1e9:.3g} GB that are free"
    except OSError as error:
        if cache is Cache.disk:
            raise OSError(
                f"{error.strerror}: free space (`python -m fsae.store list` says what takes it) or lower "
                "source.tokens; source.cache=none trains without keeping them"
            ) from None
        reason = error.strerror
    if reason is not None:
        log.warning("%.3g GB of activations are not kept: %s", missing / 1e9, reason)
        return False
    log.info(
        "%.3g GB of activations will be written to %s, where %.3g GB are free",
        missing / 1e9, room.folder, room.free() / 1e9,
    )  # fmt: skip
    return True


def _say_memory(extent: Extent, size: Callable[[int], int], training_tokens: int) -> None:
    shards, tokens = extent.shards(Part.train), extent.tokens[Part.train]
    at_a_time = min(shards, SHARDS_IN_MEMORY) * size(extent.count(Part.train, 0))
    log.info("activations are harvested into memory: at most %.3g GB at a time", at_a_time / 1e9)
    if training_tokens > tokens and shards > SHARDS_IN_MEMORY:
        log.warning(
            "training goes %.1f times round %d shards, of which memory holds %d: they are harvested again each time; "
            "use source.cache=disk, fewer source.tokens, or larger shards",
            training_tokens / tokens, shards, SHARDS_IN_MEMORY,
        )  # fmt: skip


def _permutation(size: int, *drawn_from: int) -> Int[Tensor, " size"]:
    """An order drawn from some counters, apart from that of any others."""
    return torch.randperm(size, generator=generator_for(*drawn_from))

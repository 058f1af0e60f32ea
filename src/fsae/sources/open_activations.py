"""Settings of a language model's activations, and the function that opens them as a stream."""

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any, ClassVar, Self

import torch

from fsae.devices import device_of, dtype_of
from fsae.files import digest_of
from fsae.language_models.identity import model_identity
from fsae.language_models.settings import ModelSettings
from fsae.language_models.shape import Shape, shape_of
from fsae.language_models.sites import Site
from fsae.language_models.transformer_lens import check_same_tokens
from fsae.memory import free_bytes, require_free
from fsae.ranges import COUNT, POSITIVE, between
from fsae.sources.activation_store import ActivationStore, shard_bytes
from fsae.sources.activations import SHARDS_IN_MEMORY, ActivationSource
from fsae.sources.corpus import Corpus
from fsae.sources.documents import DatasetSettings, dataset_identity, open_documents
from fsae.sources.harvest import Harvester, require_memory
from fsae.sources.layout import Sites, layout_of
from fsae.sources.passes import Passes
from fsae.sources.room import Room
from fsae.sources.shard import Extent, Part
from fsae.sources.shard_reader import ShardReader
from fsae.sources.source import Request, SourceSettings
from fsae.sources.supply import Supply
from fsae.wording import counted

log = logging.getLogger(__name__)

# With cache=auto a store takes at most this share of what the disk has left.
_SHARE_OF_FREE_DISK = 0.5
# Held-out positions that are counted at a run's beginning, to find out whether there are enough.
_HELD_OUT_COUNTED = 100_000


class Cache(Enum):
    """Places for harvested activations.

    Attributes:
        auto: on disk if they fit into half of the free space and into `source.cache_gb`, else in memory.
        disk: on disk; a run without room for them is refused.
        none: in memory.
    """

    auto = "auto"
    disk = "disk"
    none = "none"


@dataclass(frozen=True, kw_only=True)
class ActivationSourceSettings(SourceSettings):
    """Settings of the activations: their number, their order and their store. The store does not change any number.

    Attributes:
        tokens: distinct activations; training passes over them repeatedly, each time in a new order. Null for as many
            as training takes.
        shard_tokens: activations per shard. Two shards are in memory at a time; each is shuffled within itself.
        cache: keep activations on disk for other runs, or not.
        cache_gb: size limit of the folder of all stores; null for the disk's own limit.
        also: other sites, "mlp_out.5", whose activations are kept from the same forward passes.
        max_norm_multiple: vectors whose norm is more than this many times the median are left out of training and
            evaluation, and the splice leaves them as they are. Null keeps them. The store holds them either way.
        max_norm: the limit itself, instead of a multiple. Null for the limit by the multiple; in evaluation, for the
            limit in the autoencoder's cfg.json (`max_activation_norm`).
        max_norms: in place of `max_norm`, the limits at the sites of a layout of several, inputs first; empty for none.

    Raises:
        ValueError: a number out of range, a site that does not read "name.layer", other sites without a cache.
    """

    tokens: int | None = field(default=None, metadata=COUNT)
    shard_tokens: int = field(default=262_144, metadata=COUNT)
    cache: Cache = Cache.auto
    cache_gb: float | None = field(default=None, metadata=POSITIVE)
    also: list[str] = field(default_factory=list)
    max_norm_multiple: float | None = field(
        default=10.0, metadata=between(above=1, most=10**9, meaning="a multiple of the median norm")
    )
    max_norm: float | None = field(default=None, metadata=between(above=0, most=1e12))
    max_norms: list[float] = field(default_factory=list, metadata=between(above=0, most=1e12))

    provides: ClassVar[frozenset[str]] = frozenset({"language_model", "store", "partners"})

    def __post_init__(self):
        super().__post_init__()
        if self.also and self.cache is Cache.none:
            raise ValueError("source.also names sites to keep, and source.cache is none; use disk or auto")
        self.other_sites()

    def other_sites(self) -> list[Site]:
        """Return the sites of `also`.

        Raises:
            ValueError: one does not read "name.layer".
        """
        try:
            return [Site.parse(text) for text in self.also]
        except ValueError as error:
            raise ValueError(f"source.also: {error}") from None

    def distinct_tokens(self, training_tokens: int) -> int:
        """Return `tokens`, or the number of training samples if it is null."""
        return training_tokens if self.tokens is None else self.tokens

    def check_training(self, samples: int, batch_size: int) -> None:
        tokens = self.distinct_tokens(samples)
        if tokens < batch_size:
            raise ValueError(
                f"trainer.batch_size is {batch_size}, more than source.tokens ({tokens}), the distinct activations it "
                "is drawn from"
            )

    def check_harvest(self) -> None:
        if self.cache is Cache.none:
            raise ValueError("task=harvest fills the activation store, and source.cache is none; use disk or auto")

    def with_norm_limit(self, limit: float) -> tuple[Self, str | None]:
        if self.max_norm is None and self.max_norm_multiple is not None:
            return replace(self, max_norm=limit), None
        return self, None if self.max_norm == limit else str(self.max_norm)

    def with_norm_limits(self, limits: list[float]) -> Self:
        unset = not self.max_norms and self.max_norm is None and self.max_norm_multiple is not None
        return replace(self, max_norms=limits) if unset else self

    def open(self, request: Request, heartbeat: Callable[[], None]) -> ActivationSource:
        (source,) = open_activations(self, [request], heartbeat)
        return source

    @contextmanager
    def open_together(
        self, requests: Sequence[Request], heartbeat: Callable[[], None]
    ) -> Iterator[Sequence[ActivationSource]]:
        with ExitStack() as stack:
            yield [stack.enter_context(source) for source in open_activations(self, requests, heartbeat)]

    def stream_key(self, request: Request) -> Hashable:
        return request.sites(), request.layout.pair, self.pack_key(request)

    def pack_key(self, request: Request) -> Hashable:
        model, _, dataset = request.text()
        tokens = self.distinct_tokens(request.training_samples)
        # Settings with lists as text, because lists cannot be part of a key.
        limit = self.max_norm_multiple, self.max_norm, tuple(self.max_norms)
        return model, repr(dataset), tokens, self.shard_tokens, self.seed, limit, tuple(self.also)


def open_activations(
    settings: ActivationSourceSettings, requests: Sequence[Request], heartbeat: Callable[[], None]
) -> list[ActivationSource]:
    """Open the activations of one or several streams, and log their origin and their size.

    Streams share each forward pass, and the language model is opened only if something has to be harvested.

    Args:
        settings: of the activations.
        requests: one for each stream; they differ in their sites, and in how much of the stream training takes.
        heartbeat: called after each forward pass; may raise to stop.

    Raises:
        ValueError: a model, data set or site that does not exist, two models with different tokens, a store of another
            format, no memory for the shards.
        OSError: source.cache is disk and there is no room.
    """
    request = max(requests, key=lambda each: each.training_samples)
    if request.harvest:
        # A harvest that may not keep its activations has nothing to do.
        settings = replace(settings, cache=Cache.disk)
    model, _, dataset = request.text()
    streams = [each.sites() for each in requests]
    read = list(dict.fromkeys(site for each in streams for site in each.all))
    sites = list(dict.fromkeys([*read, *settings.other_sites()]))
    extent = _extent(settings, request)
    stores = {} if settings.cache is Cache.none else _stores(settings, request, sites)
    if not stores or any(next(store.missing(extent), None) for store in stores.values()):
        _check_documents(dataset, extent)
        for other in dict.fromkeys(each.model_in(model) for each in sites):
            if other != model:
                check_same_tokens(model, other)
    corpus = Corpus(model, dataset)
    shards = _ShardSize(_shapes(corpus, model, sites), dtype_of(model), corpus.labelled)
    missing = sum(store.missing_bytes(extent, partial(shards.bytes, at)) for at, store in stores.items())
    room = _room_for(missing, settings, request) if stores else None
    harvester = Harvester(corpus, settings.shard_tokens, heartbeat)
    reader = ShardReader(harvester, [each.all for each in streams], stores, extent, room)
    stored = bool(stores) and missing == 0
    if not stored:
        shards.require_memory(sites if stores else read, extent)
    if request.training_samples:
        shards.require_memory_of_training(streams, extent, device_of(model))
    if stored:
        _log_store([stores[each] for each in read], extent)
        held_out = reader.held_out_count() or 0
    else:
        spliced = dict.fromkeys(site for each in streams for site in each.target) if request.spliced else {}
        _check_sites(corpus, sites, list(spliced))
        held_out = _held_out_positions(harvester, extent, dataset)
        if room is None and request.training_samples:
            held = [site for each in streams for site in each.all]
            _log_memory(extent, partial(shards.bytes_of, held), request.training_samples)
    # The width as the model was read, if it was: a config.json may leave out the width of heads.
    width = shards.width if stored else corpus.width
    sources = [_source(settings, each, reader, width) for each in requests]
    supply = Supply(
        held_out=min(held_out, request.held_out_samples),
        held_out_wanted=request.held_out_samples,
        distinct=sources[0].distinct(request.training_samples) if stored else None,
        wanted=sources[0].wanted(request.training_samples),
    )
    for sentence in supply.shortages():
        log.warning("%s", sentence)
    return sources


@dataclass(frozen=True)
class _ShardSize:
    """The memory that a shard takes, on disk and while it is harvested.

    Attributes:
        shapes: of the language model that each site is of.
        dtype: of the activations.
        labelled: whether each vector has a label.
    """

    shapes: Mapping[Site, Shape]
    dtype: torch.dtype
    labelled: bool

    def width(self, site: Site) -> int:
        """Return the number of dimensions of the activations at a site."""
        return self.shapes[site].width(site)

    def bytes(self, site: Site, count: int) -> int:
        """Return how many bytes a shard of so many vectors takes on disk."""
        return shard_bytes(count, self.width(site), self.dtype, self.labelled)

    def bytes_of(self, sites: Sequence[Site], count: int) -> int:
        """Return how many bytes the shards of several sites take on disk."""
        return sum(self.bytes(site, count) for site in sites)

    def require_memory(self, sites: Sequence[Site], extent: Extent) -> None:
        """Raise ValueError if memory cannot hold the largest shard of each site."""
        largest = min(extent.shard_tokens, max(extent.tokens.values()))
        require_memory(largest, [self.width(site) for site in sites], self.dtype)

    def require_memory_of_training(self, streams: Sequence[Sites], extent: Extent, device: torch.device) -> None:
        """Raise ValueError if a device cannot hold the shards that streams train on at a time."""
        vector = self.dtype.itemsize * sum(self.width(site) for sites in streams for site in sites.all)
        count, shards = extent.count(Part.train, 0), min(extent.shards(Part.train), SHARDS_IN_MEMORY)
        require_free(
            shards * count * vector,
            device,
            f"the training shards of {counted(len(streams), 'stream')} ({shards} x {count:,} vectors each)",
            f"lower source.shard_tokens to at most {int(0.8 * free_bytes(device) / (shards * vector))}"
            + ", or hydra.launcher.max_jobs, for fewer sites at a time" * (len(streams) > 1),
        )


def _shapes(corpus: Corpus, model: ModelSettings, sites: Sequence[Site]) -> dict[Site, Shape]:
    """Return the shape of the model that each site is of; a model of unknown shape is opened."""
    return {site: shape_of(site.model_in(model)) or corpus.model_at(site).shape for site in sites}


def _extent(settings: ActivationSourceSettings, request: Request) -> Extent:
    """Return the numbers of vectors that the run wants; none to train on if it does not train."""
    training = request.training_samples
    return Extent(
        tokens={
            Part.train: settings.distinct_tokens(training) if training else 0,
            Part.held_out: request.held_out_samples,
        },
        shard_tokens=settings.shard_tokens,
    )


def _source(
    settings: ActivationSourceSettings, request: Request, reader: ShardReader, width: Callable[[Site], int]
) -> ActivationSource:
    model, _, dataset = request.text()
    kept_in = None if settings.cache is Cache.none else Room(folder=request.stores, limit_gb=settings.cache_gb)
    sites = request.sites()
    inputs, targets = (layout_of(each, [width(site) for site in each]) for each in sites)
    return ActivationSource(
        reader,
        sites=sites,
        input_layout=inputs,
        target_layout=targets,
        seed=settings.seed,
        training_tokens=request.training_samples,
        device=device_of(model),
        passes=Passes.of(model, dataset.tokens_per_row, kept_in),
        max_norm_multiple=settings.max_norm_multiple,
        max_norms=_limits(settings, len(sites.all)),
        partners=request.partners,
    )


def _limits(settings: ActivationSourceSettings, sites: int) -> list[float] | None:
    """Return the given limit of each site's norms; None if there are none.

    Raises:
        ValueError: there is not one for each.
    """
    given = settings.max_norms or ([] if settings.max_norm is None else [settings.max_norm])
    if given and len(given) != sites:
        raise ValueError(
            f"source.max_norms has {len(given)} limits, but the layout has {sites} sites; give one for each, or null"
        )
    return given or None


def _stores(settings: ActivationSourceSettings, request: Request, sites: Sequence[Site]) -> dict[Site, ActivationStore]:
    """Open the store of each site, whether or not it exists yet."""
    model, _, dataset = request.text()
    shared = _content(model, dataset, settings.shard_tokens)
    stores = {}
    for site in dict.fromkeys(sites):
        content, own = shared | {"site": str(site.within)}, site.model_in(model)
        if own != model:
            content |= {"model": model_identity(own), "tokens_of": shared["model"]}
        name = f"{own.name}-{site.within}-{dataset.name}-{digest_of(content)}"
        stores[site] = ActivationStore(request.stores / name, content)
    return stores


def _content(model: ModelSettings, dataset: DatasetSettings, shard_tokens: int) -> dict[str, Any]:
    """Return everything that determines the vectors of a store, besides the site.

    The number of tokens is not included, because shards do not depend on it. The rows of a forward pass are included:
    they decide where a shard ends, and the last bits of its vectors.
    """
    text = {
        name: value.name if isinstance(value, Enum) else value
        for name, value in asdict(dataset).items()
        if name not in ("path", "context", "max_invalid_rows") and not (name == "prepend_bos" and value is None)
    }
    text["context"] = dataset.tokens_per_row
    return {
        "model": model_identity(model),
        **Passes.of(model, dataset.tokens_per_row).numerics,
        "dataset": text | dataset_identity(dataset),
        "shard_tokens": shard_tokens,
    }


def _check_documents(dataset: DatasetSettings, extent: Extent) -> None:
    """Read one document of each wanted part, before the language model is opened, because opening may take minutes."""
    for part in [Part.train, Part.held_out] if extent.tokens[Part.train] else [Part.held_out]:
        next(open_documents(dataset, part))


def _check_sites(corpus: Corpus, sites: Sequence[Site], spliced: Sequence[Site]) -> None:
    """Raise ValueError, before hours of training, if the language model cannot be read or spliced at the sites."""
    for site in sites:
        corpus.model_at(site).check_site(site.within)
    for site in spliced:
        corpus.model_at(site).check_splice(site.within)


def _held_out_positions(harvester: Harvester, extent: Extent, dataset: DatasetSettings) -> int:
    """Return how many of the wanted held-out positions the text has: all, if its beginning has enough.

    Raises:
        ValueError: some are wanted, and there are none.
    """
    wanted = extent.tokens[Part.held_out]
    counted = min(wanted, _HELD_OUT_COUNTED)
    found = harvester.corpus.held_out_positions(counted, harvester.beat)
    if wanted and not found:
        raise ValueError(
            f"data set {dataset.name}: its held-out text has no position to evaluate on; give it more text, or "
            f"raise dataset.held_out, which is {dataset.held_out}"
        )
    return wanted if found == counted else found


def _room_for(missing: int, settings: ActivationSourceSettings, request: Request) -> Room | None:
    """Return the room for the bytes that are missing from the stores, or None if they are not kept; log the choice.

    Raises:
        OSError: they must be kept, and there is no room.
    """
    room = Room(folder=request.stores, limit_gb=settings.cache_gb, required=settings.cache is Cache.disk)
    if missing == 0:
        return room
    reason = None
    try:
        room.require(missing)
        if settings.cache is Cache.auto and missing > _SHARE_OF_FREE_DISK * room.free():
            reason = f"that is more than half of the {room.free() / 1e9:.3g} GB that are free"
    except OSError as error:
        if room.required:
            raise OSError(
                f"{error.strerror}: free space (`python -m fsae.store list` says what takes it) or lower "
                "source.tokens; source.cache=none trains without keeping them"
            ) from None
        reason = error.strerror
    if reason is not None:
        log.warning("%.3g GB of activations are not kept: %s", missing / 1e9, reason)
        return None
    log.info(
        "%.3g GB of activations will be written to %s, where %.3g GB are free",
        missing / 1e9, room.folder, room.free() / 1e9,
    )  # fmt: skip
    return room


def _log_store(stores: Sequence[ActivationStore], extent: Extent) -> None:
    log.info(
        "activations from the store, nothing harvested: %s to train on and %s held out, %.3g GB in %s",
        f"{extent.tokens[Part.train]:,}", f"{extent.tokens[Part.held_out]:,}",
        sum(each.bytes() for each in stores) / 1e9,
        ", ".join(str(each.folder) for each in stores),
    )  # fmt: skip


def _log_memory(extent: Extent, size: Callable[[int], int], training_tokens: int) -> None:
    shards, tokens = extent.shards(Part.train), extent.tokens[Part.train]
    at_a_time = min(shards, SHARDS_IN_MEMORY) * size(extent.count(Part.train, 0))
    log.info("activations are harvested into memory: at most %.3g GB at a time", at_a_time / 1e9)
    if training_tokens > tokens and shards > SHARDS_IN_MEMORY:
        log.warning(
            "training goes %.1f times round %d shards, of which memory holds %d: they are harvested again each time; "
            "use source.cache=disk, fewer source.tokens, or larger shards",
            training_tokens / tokens, shards, SHARDS_IN_MEMORY,
        )  # fmt: skip

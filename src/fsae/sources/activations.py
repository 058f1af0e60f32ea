"""Activations of a language model at one site as a stream of shuffled batches."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.autoencoders.layout import End, Layout
from fsae.language_models.identity import model_identity
from fsae.language_models.sites import Site
from fsae.language_models.transformer_lens import TransformerLensModel
from fsae.seeds import generator_for
from fsae.sources.harvest import Harvester
from fsae.sources.layout import Sites
from fsae.sources.massive import norm_limit, within_all
from fsae.sources.passes import Passes
from fsae.sources.room import Room
from fsae.sources.shard import Part
from fsae.sources.shard_reader import ShardReader
from fsae.sources.source import Batch, Partners, Source, in_batches
from fsae.sources.supply import Supply
from fsae.sources.tokens import TextRows

# The shard that training is in, and the one that is fetched meanwhile.
SHARDS_IN_MEMORY = 2


class _Fetched(NamedTuple):
    """Shard in memory.

    Attributes:
        vectors: all of its vectors.
        kept: the rows of those that are not massive; None if no vector is massive.
        previous: for each row the one before it in the text, -1 if there is none or it is massive; None if no term asks
            for partners.
    """

    vectors: Float[Tensor, "vectors d_in"]
    kept: Int[Tensor, " kept"] | None
    previous: Int[Tensor, " vectors"] | None


class ActivationSource(Source):
    """Shuffled activations of a language model at the sites of a layout; rows are aligned between them.

    The first epoch takes the shards in their order, so that training can begin while later shards are harvested; later
    epochs take them in an order drawn from (seed, epoch). Each visit permutes the vectors of a shard by (seed, epoch,
    shard). The next shard is fetched in the background. A position is therefore two counters, and the stream does not
    depend on whether its shards come from the store. Another vector of the shard replaces each massive vector, so that
    the number of vectors per shard does not depend on how many are massive.

    Args:
        shards: the reader of both parts' shards; other streams may share it.
        sites: the sites of the inputs and of the targets.
        input_layout, target_layout: their widths.
        seed: decides the order.
        training_tokens: vectors that training will take; shards that training does not reach are not fetched.
        device: where batches will be.
        passes: the language model's forward passes. A position in a stream with another dtype or other rows is refused.
        max_norm_multiple: a vector is massive if its norm is more than this many times the median norm at its site, and
            a row is left out if it is massive at any site; None for no limit.
        max_norms: the limits themselves, of each site, instead of a multiple.
        partners: whether training batches have the partners of their samples.

    Attributes:
        waited: seconds in which training waited for the next shard.
        held_out_found: held-out vectors in the last pass over them, including the massive ones.
        massive_share: share of these that were massive and left out.
    """

    unit = "tokens"
    tail_remedy = "lower source.max_norm_multiple, or raise dataset.skip_positions"

    def __init__(
        self,
        shards: ShardReader,
        *,
        sites: Sites,
        input_layout: Layout,
        target_layout: Layout,
        seed: int,
        training_tokens: int,
        device: torch.device,
        passes: Passes,
        max_norm_multiple: float | None,
        max_norms: list[float] | None = None,
        partners: bool = False,
    ):
        self.sites, self._input, self._target = sites, input_layout, target_layout
        self.d_in, self.device, self._passes = input_layout.width, device, passes
        # The sites and the parts of a shard's rows.
        self._read_at = sites.all
        self._joined = input_layout if self._reconstructs_inputs else Layout(input_layout.parts + target_layout.parts)
        # What one end of the stream has of the rows, and which of the limits are its own.
        self._columns, self._places = slice(None), slice(None)
        self._max_norm_multiple = max_norm_multiple
        self._norm_limits = max_norms
        self._partners = partners
        self.text = self.store = self
        self.held_out_found = 0
        self.massive_share = 0.0
        self._shards, self._seed, self._training_tokens = shards, seed, training_tokens
        self._extent = shards.extent
        self._epoch = self._batch = 0
        self.waited = 0.0
        self._fetched: dict[int, Future[_Fetched]] = {}
        # It has as many cores as this thread, for any limit that other threads set while it begins.
        self._background = ThreadPoolExecutor(1, "harvest", torch.set_num_threads, (torch.get_num_threads(),))

    def __enter__(self) -> "ActivationSource":
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the harvest in the background."""
        self.harvester.stop()
        self._background.shutdown(cancel_futures=True)
        self._fetched.clear()
        self._shards.close()

    @property
    def model(self) -> TransformerLensModel:
        """The language model, opened on first use."""
        return self.harvester.corpus.model

    def model_at(self, site: Site) -> TransformerLensModel:
        """Return the language model that a site is of: `model`, or the other one of a crosscoder over two models."""
        return self.harvester.corpus.model_at(site)

    @property
    def site(self) -> Site:
        """The site whose activations are the inputs; the first one if there are several."""
        return self.sites.input[0]

    @property
    def input_layout(self) -> Layout:
        return self._input

    @property
    def target_layout(self) -> Layout:
        return self._target

    def at(self, end: End) -> "ActivationSource":
        if self._reconstructs_inputs:
            return self
        # It shares the shards. Rows that are massive at either end stay left out.
        one, first = copy(self), end is End.input
        one.text = one.store = one
        one.sites = self.sites.at(end)
        one._input = one._target = self._input if first else self._target
        one.d_in = one._input.width
        one._columns, one._places = (
            slice(boundary) if first else slice(boundary, None)
            for boundary in (self._input.width, len(self._input.parts))
        )
        return one

    @property
    def _reconstructs_inputs(self) -> bool:
        return self._input == self._target

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return self.harvester.corpus.dataset_name

    @property
    def reopen_models(self) -> Callable[[], Callable[[Site], TransformerLensModel]]:
        """Returns `model_at` of language models that are opened again, in another process."""
        return self.harvester.corpus.reopen_models

    @property
    def rows_at_once(self) -> int:
        """Rows per forward pass of the language model."""
        return self._passes.rows

    @property
    def prepends_bos(self) -> bool:
        """True if each row of text begins with a BOS."""
        return self._shards.prepends_bos

    @property
    def origin(self) -> dict[str, Any]:
        """Everything besides text and sites that decides activations: the models' identities and their dtype."""
        own = self._passes.model
        models = {str(site): site.model_in(own) for site in self.sites.input}
        others = {site: model_identity(model) for site, model in models.items() if model != own}
        return self._passes.origin | ({"others": others} if others else {})

    @property
    def kept_in(self) -> Room | None:
        """The folder of all activations, where those of an evaluation's own texts are kept, too; None for none."""
        return self._passes.kept_in

    @property
    def harvester(self) -> Harvester:
        """The harvester, which measures the time of the language model's work; it works during training too."""
        return self._shards.harvester

    @property
    def norm_limit(self) -> float | None:
        """The norm above which a vector at `site` is massive; None for no limit."""
        return None if self.norm_limits is None else self.norm_limits[0]

    @property
    def norm_limits(self) -> list[float] | None:
        """The norms above which vectors are massive, by the medians of the first shard; None for no limits.

        A run has one limit for each site: training, evaluation and splice leave out the same rows.
        """
        if self._max_norm_multiple is not None and self._norm_limits is None:
            if self._extent.tokens[Part.train]:
                self._vectors(0)
            else:
                self._find_limits(self._read(Part.held_out, 0))
        return None if self._norm_limits is None else self._norm_limits[self._places]

    @property
    def input_limits(self) -> list[float] | None:
        """The norms above which vectors at the sites of the inputs are massive; None for no limits."""
        limits = self.norm_limits
        return None if limits is None else limits[: len(self.sites.input)]

    def _find_limits(self, first_rows: Tensor) -> None:
        multiple = self._max_norm_multiple
        assert multiple is not None
        self._norm_limits = [norm_limit(part, multiple) for part in self._joined.split(first_rows)]

    def _short(self, rows: Float[Tensor, "rows d"]) -> Bool[Tensor, " rows"]:
        """Return which rows are massive at no site."""
        assert self._norm_limits is not None
        return within_all(self._joined.split(rows), self._norm_limits)

    def _batch_of(self, rows: Float[Tensor, "batch d"]) -> Batch:
        rows = rows[:, self._columns]
        if self._reconstructs_inputs:
            return Batch(rows, rows)
        inputs, targets = rows.split([self._input.width, self._target.width], dim=1)
        return Batch(inputs, targets)

    def state_dict(self) -> dict[str, Any]:
        limits = self._norm_limits
        return {
            "epoch": self._epoch,
            "batch": self._batch,
            "passes": self._passes.numerics,
            "norm_limit": limits[0] if limits is not None and len(limits) == 1 else limits,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position.

        Raises:
            ValueError: the position is in a stream whose vectors were harvested with another dtype or number of rows.
        """
        passes = self._passes.numerics
        if state["passes"] != passes:
            was, now = ("{dtype}, {rows} rows per pass".format(**each) for each in (state["passes"], passes))
            raise ValueError(
                f"the run began on activations harvested in {was}; here they would be harvested in {now}: resume it on "
                "a device of the same kind, or begin again with model.dtype={dtype} model.batch_size={rows}".format(
                    **state["passes"]
                )
            )
        self._epoch, self._batch = state["epoch"], state["batch"]
        limit = state["norm_limit"]
        self._norm_limits = [limit] if isinstance(limit, float) else limit

    def first_vectors(self) -> Float[Tensor, "vectors d_in"]:
        return self._first().inputs

    def first_targets(self) -> Float[Tensor, "vectors d_out"]:
        return self._first().targets

    def _first(self) -> Batch:
        vectors, kept, _ = self._vectors(0)
        return self._batch_of(vectors if kept is None else vectors[kept])

    def batches(self, batch_size: int) -> Iterator[Batch]:
        # Vectors that fill no batch are left out at an epoch's end, and joined with the next shard's at a shard's end.
        size = self._extent.tokens[Part.train] // batch_size * batch_size
        if size == 0:
            raise ValueError(
                f"trainer.batch_size is {batch_size}, more than the {self._extent.tokens[Part.train]} training "
                "vectors; raise source.tokens"
            )
        # Training takes whole batches.
        taken = self._training_tokens // batch_size * batch_size
        while True:
            row, parts = self._batch * batch_size, list[Batch]()
            visits = list(self._visits(self._epoch))
            following = [*visits[1:], (*next(self._visits(self._epoch + 1))[:1], size)]
            for (number, begin), (next_number, next_begin) in zip(visits, following, strict=True):
                end = min(size, begin + self._extent.count(Part.train, number))
                if row >= end:
                    continue
                shard = self._vectors(number)
                if self._epoch * size + next_begin < taken:
                    self._fetch(next_number, beside=number)
                # The whole order at once: a copy per batch would make the host wait for the device.
                order = _permutation(self._extent.count(Part.train, number), self._seed, self._epoch, number)
                order = order.to(shard.vectors.device)
                if shard.kept is not None:
                    order = shard.kept[order % len(shard.kept)]
                while row < end:
                    missing = batch_size - sum(len(part.inputs) for part in parts)
                    places = order[row - begin : min(row + missing, end) - begin]
                    parts.append(self._part(shard, places))
                    row += len(places)
                    if len(places) == missing:
                        # Counted before the yield, so that a state saved meanwhile names the next batch.
                        self._batch += 1
                        batch = parts[0] if len(parts) == 1 else _joined(parts)
                        parts = []
                        yield batch
            self._epoch, self._batch = self._epoch + 1, 0

    def held_out(self, count: int, batch_size: int) -> Iterator[Batch]:
        for batch in in_batches(self._held_out(count), batch_size):
            yield self._batch_of(batch.to(self.device))

    def distinct(self, taken: int) -> int:
        """Return the number of distinct vectors among the first `taken` training vectors."""
        return self._shards.distinct(Part.train, self.wanted(taken))

    def wanted(self, taken: int) -> int:
        """Return how many of the first `taken` training vectors would be distinct if there were enough text."""
        return min(taken, self._extent.tokens[Part.train])

    def supply(self, trained: int | None, held_out: int | None, held_out_wanted: int) -> Supply:
        return Supply(
            trained=trained,
            distinct=None if trained is None else self.distinct(trained),
            wanted=None if trained is None else self.wanted(trained),
            held_out=held_out,
            held_out_wanted=held_out_wanted,
            skipped_rows=self._shards.skipped_rows,
        )

    def costs(self) -> dict[str, float]:
        harvester = self.harvester
        return {"waiting": self.waited, "harvesting": harvester.seconds, "reading text": harvester.text_seconds}

    def _held_out(self, count: int) -> Iterator[Float[Tensor, "part d_in"]]:
        assert count <= self._extent.tokens[Part.held_out]
        limits, seen, left_out = self.norm_limits, 0, 0
        for number in range(self._extent.shards(Part.held_out)):
            vectors = self._read(Part.held_out, number)[:count]
            count -= len(vectors)
            seen += len(vectors)
            kept = vectors if limits is None else vectors[self._short(vectors)]
            left_out += len(vectors) - len(kept)
            yield kept
            if len(vectors) < self._extent.count(Part.held_out, number):
                break
        self.held_out_found, self.massive_share = seen, left_out / max(1, seen)

    def held_out_rows(self, count: int) -> tuple[Int[Tensor, "row context"], Bool[Tensor, "row context"]]:
        """Return the first rows of held-out text that have at least `count` tokens together, or all rows.

        Raises:
            ValueError: the held-out part is empty or shorter than one row.
        """
        return self.harvester.corpus.held_out_rows(count)

    def rows(self, part: Part, count: int, heartbeat: Callable[[], None] = lambda: None) -> TextRows:
        """Return the first rows of a part that have at least `count` tokens together, or all its rows.

        Raises:
            ValueError: the part is empty or shorter than one row.
        """
        return self.harvester.corpus.rows(part, count, heartbeat)

    def fill_store(self) -> dict[str, float]:
        """Put every shard of both parts and all sites into the store, together with other processes that do the same.

        Returns:
            The work of this process: `harvest/shards`, `harvest/tokens`, `harvest/seconds`.

        Raises:
            OSError: no room.
        """
        self._shards.fill()
        return {
            "harvest/shards": self._shards.made,
            "harvest/tokens": self.harvester.tokens,
            "harvest/seconds": self.harvester.seconds,
        }

    def _part(self, shard: _Fetched, places: Int[Tensor, " part"]) -> Batch:
        """Return a batch of some rows of a shard."""
        batch = self._batch_of(shard.vectors.index_select(0, places))
        if shard.previous is None:
            return batch
        before = shard.previous.index_select(0, places)
        inputs = shard.vectors.index_select(0, before.clamp_min(0))[:, : self._input.width]
        return batch._replace(partners=Partners(inputs, before >= 0))

    def _visits(self, epoch: int) -> Iterator[tuple[int, int]]:
        """Yield the shards in the order of an epoch, each with its first row in that order."""
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
        """Begin to read a shard into memory; it replaces a shard other than `beside`."""
        if number not in self._fetched:
            others = [there for there in self._fetched if there != beside]
            if len(self._fetched) == SHARDS_IN_MEMORY:
                del self._fetched[others[0]]
            self._fetched[number] = self._background.submit(self._load, number)

    def _read(self, part: Part, number: int) -> Float[Tensor, "vectors d"]:
        """Return the activations of a shard at the sites of the inputs, and then of the targets."""
        return self._shards.shard(part, number, self._read_at).activations

    def _load(self, number: int) -> _Fetched:
        shard = self._shards.shard(Part.train, number, self._read_at)
        vectors = shard.activations.to(self.device)
        previous = shard.previous(Part.train, number).to(self.device) if self._partners else None
        if self._norm_limits is None and self._max_norm_multiple is not None:
            # The first shard is read first, and a saved position has the limits of its stream.
            assert number == 0
            self._find_limits(vectors)
        if self._norm_limits is None:
            return _Fetched(vectors, None, previous)
        kept = self._short(vectors)
        if kept.all():
            return _Fetched(vectors, None, previous)
        if not kept.any():
            raise ValueError(
                f"every activation of shard {number} has a norm above {_shown(self._norm_limits)} (source.max_norm, or "
                "source.max_norm_multiple times the median of the first shard): one limit does not suit this text; set "
                "both to null"
            )
        if previous is not None:
            previous = torch.where(kept[previous], previous, -1)
        return _Fetched(vectors, kept.nonzero().squeeze(1), previous)


def _joined(parts: Sequence[Batch]) -> Batch:
    """Return parts of a batch as one."""
    inputs = torch.cat([part.inputs for part in parts])
    same = parts[0].targets is parts[0].inputs
    partners = [part.partners for part in parts if part.partners is not None]
    return Batch(
        inputs,
        inputs if same else torch.cat([part.targets for part in parts]),
        Partners(*map(torch.cat, zip(*partners, strict=True))) if partners else None,
    )


def _shown(limits: list[float]) -> str:
    return ", ".join(f"{limit:.4g}" for limit in limits)


def _permutation(size: int, *drawn_from: int) -> Int[Tensor, " size"]:
    """Draw an order from some counters, independent of the order that other counters give."""
    return torch.randperm(size, generator=generator_for(*drawn_from))

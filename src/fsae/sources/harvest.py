"""Harvesting: the language model run over packed text, its activations gathered into shards."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.language_models.sites import Site
from fsae.memory import CPU, free_bytes, require_free
from fsae.progress import Progress, working
from fsae.sources.documents import Part
from fsae.sources.tokens import Block, PackedTokens

log = logging.getLogger(__name__)


class Harvestable(Protocol):
    """What harvesting needs of a language model."""

    dtype: torch.dtype

    @property
    def device(self) -> torch.device: ...

    def width(self, site: Site) -> int: ...

    def activations(self, tokens: Int[Tensor, "row context"], sites: Sequence[Site]) -> dict[Site, Tensor]: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Shard:
    """Activations at one site, and where in the text each is from.

    Attributes:
        activations: raw, in the model's dtype.
        tokens: the ids at these positions.
        documents: which document of the part, counted from 0.
        labels: those documents' labels; None where the data set has none.
    """

    activations: Float[Tensor, "vectors d_in"]
    tokens: Int[Tensor, " vectors"]
    documents: Int[Tensor, " vectors"]
    labels: Int[Tensor, " vectors"] | None

    def __len__(self) -> int:
        return len(self.activations)


@dataclass(frozen=True, eq=False, kw_only=True)
class Harvested:
    """One shard of each site from the same forward passes, all of the same positions.

    Attributes:
        shards: by site.
        text: the text's position after it; None where the shard was cut short, and the next one begins elsewhere.
        text_ended: whether there is no more text.
        distinct: how many of the positions are from text that was not read before; they come first.
        skipped_rows: of the data set, which held no document, in the present pass over it.
        label_names: what labels that stand for text mean.
    """

    shards: dict[Site, Shard]
    text: dict[str, Any] | None
    text_ended: bool
    distinct: int
    skipped_rows: int
    label_names: list[str]


def order_in_shard(part: Part, number: int, count: int) -> Int[Tensor, " count"]:
    """Which place of the text, within the shard, each of its rows is from: shuffled across documents for training, and
    as the text has it in the held-out part."""
    if part is Part.held_out:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(number))


class Harvester:
    """Runs the language model over the two parts of a text, a shard at a time; opens both when first needed.

    Shard i of a part is the next `shard_tokens` kept positions after shard i - 1; the rest of the forward pass in which
    it fills up is left out.

    Args:
        open_model: opens the language model.
        open_text: opens one part of the text, packed for that model, at its beginning.
        shard_tokens: positions a shard.
        heartbeat: called after each forward pass; may raise to stop the harvest.

    Attributes:
        seconds: spent harvesting.
        text_seconds: of these, waiting for text to be read and tokenised.
        tokens: positions harvested.
        distinct: by part and shard, how many positions are from text that was not read before; of those shards that
            were harvested or read over.
        skipped_rows: of the data set, which held no document, in one pass.
    """

    def __init__(
        self,
        open_model: Callable[[], Harvestable],
        open_text: Callable[[Any, Part], PackedTokens],
        shard_tokens: int,
        heartbeat: Callable[[], None],
    ):
        self._open_model, self._open_text = open_model, open_text
        self._shard_tokens, self._heartbeat = shard_tokens, heartbeat
        self._texts: dict[Part, PackedTokens] = {}
        # Before which shard each text stands; absent where that is unknown.
        self._stands_before: dict[Part, int] = {}
        self._stopped = threading.Event()
        self._told_again = False
        self.seconds = self.text_seconds = 0.0
        self.tokens = self.skipped_rows = 0
        self.distinct: dict[tuple[Part, int], int] = {}

    @cached_property
    def model(self) -> Any:
        """The language model, opened on first use."""
        with working("opening the language model"):
            return self._open_model()

    @cached_property
    def prepends_bos(self) -> bool:
        """Whether each row of text begins with a BOS; opens the language model."""
        return self._open_text(self.model, Part.held_out).prepends_bos

    def stop(self) -> None:
        """End a harvest that goes on in another thread after its present forward pass."""
        self._stopped.set()

    def beat(self) -> None:
        """Raise where the harvest is to stop."""
        if self._stopped.is_set():
            raise CancelledError("the harvest was stopped")
        self._heartbeat()

    def harvest(
        self,
        part: Part,
        number: int,
        count: int,
        sites: Sequence[Site],
        nearest_text: Callable[[], tuple[int, dict[str, Any]] | None],
    ) -> Harvested:
        """Shard `number` of a part at all sites; fewer than `count` positions where the text ends.

        Args:
            count: positions, at most `shard_tokens`.
            nearest_text: looks up the nearest shard before which the text's position is known, and that position; not
                called where the text stands there already.

        Raises:
            ValueError: activations that are not finite, no memory for a shard, text without a position to train on.
        """
        text = self._text_before(part, number, nearest_text)
        self._stands_before.pop(part, None)
        model = self.model
        for site in sites:
            require_memory(count, model.width(site), model.dtype, len(sites))
        order = order_in_shard(part, number, count)
        place_of = torch.argsort(order)
        activations = {site: torch.empty(count, model.width(site), dtype=model.dtype) for site in sites}
        facts = torch.empty(3, count, dtype=torch.long)
        filled = distinct = 0
        progress = Progress(f"harvesting {', '.join(map(str, sites))}, {part.value} shard {number}", count)
        try:
            for block in self._ahead(_kept(text, count)):
                places = place_of[filled : filled + int(block.keep.sum())]
                vectors = self._activations(model, block, sites)
                for site in sites:
                    activations[site][places] = vectors[site][: len(places)].cpu()
                for row, fact in zip(facts, (block.tokens, block.documents, block.labels), strict=True):
                    row[places] = fact[block.keep][: len(places)]
                filled += len(places)
                distinct += min(block.distinct, len(places))
                if distinct < filled and part is Part.train and not self._told_again:
                    self._told_again = True
                    log.warning("the training text has ended; shard %d reads it again from its beginning", number)
                progress.advance(len(places))
                self.beat()
        finally:
            self.seconds += progress.seconds()
            self.tokens += filled
            progress.close()
        ended = filled < count
        assert not ended or part is Part.held_out, "the training text begins again at its end"
        whole = count == self._shard_tokens and not ended
        if whole:
            self._stands_before[part] = number + 1
        tokens, documents, labels = facts[:, :filled]
        self._note(part, number, distinct, text)
        return Harvested(
            shards={
                site: Shard(
                    activations=activations[site][:filled],
                    tokens=tokens.int(),
                    documents=documents.int(),
                    labels=labels if text.labelled else None,
                )
                for site in sites
            },
            text=text.state_dict() if whole else None,
            text_ended=ended,
            distinct=distinct,
            skipped_rows=text.skipped_rows,
            label_names=list(text.label_names),
        )

    def held_out_positions(self, count: int) -> int:
        """How many positions of held-out text there are to evaluate on, counted no further than `count`.

        Raises:
            ValueError: the held-out part is empty or shorter than one row.
        """
        there = 0
        for block in self._open_text(self.model, Part.held_out):
            there += int(block.keep.sum())
            self.beat()
            if there >= count:
                break
        return min(there, count)

    def held_out_rows(self, count: int) -> tuple[Int[Tensor, "row context"], Bool[Tensor, "row context"]]:
        """The first rows of held-out text that have at least `count` tokens between them (fewer if there are no more).

        Raises:
            ValueError: the held-out part is empty or shorter than one row.
        """
        blocks: list[Block] = []
        for block in self._open_text(self.model, Part.held_out):
            blocks.append(block)
            if sum(each.tokens.numel() for each in blocks) >= count:
                break
        tokens, keep = torch.cat([block.tokens for block in blocks]), torch.cat([block.keep for block in blocks])
        rows = -(-count // tokens.shape[1])
        return tokens[:rows], keep[:rows]

    def _text_before(
        self, part: Part, number: int, nearest_text: Callable[[], tuple[int, dict[str, Any]] | None]
    ) -> PackedTokens:
        """The text of a part, standing at the beginning of a shard.

        Shards before it are read over, at the tokenizer's speed, from the nearest position that is known.
        """
        at = self._stands_before.pop(part, None)
        known = nearest_text() if at != number else None
        if at is None or at > number or (known is not None and known[0] > at):
            self._texts[part] = self._open_text(self.model, part)
            at = 0
            if known is not None:
                at, state = known
                self._texts[part].load_state_dict(state)
        text = self._texts[part]
        if at < number:
            progress = Progress(f"reading over {part.value} text", (number - at) * self._shard_tokens)
            for earlier in range(at, number):
                passed = distinct = 0
                for block in _kept(text, self._shard_tokens):
                    used = min(int(block.keep.sum()), self._shard_tokens - passed)
                    progress.advance(used)
                    passed += used
                    distinct += min(block.distinct, used)
                    self.beat()
                self._note(part, earlier, distinct, text)
            progress.close()
        self._stands_before[part] = number
        return text

    def _note(self, part: Part, number: int, distinct: int, text: PackedTokens) -> None:
        self.distinct[part, number] = distinct
        self.skipped_rows = max(self.skipped_rows, text.skipped_rows)

    def _ahead(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The blocks, each read and tokenised while the one before it is in use."""
        with ThreadPoolExecutor(1, thread_name_prefix="text") as background:
            upcoming = background.submit(next, blocks, None)
            while True:
                began = time.monotonic()
                block = upcoming.result()
                self.text_seconds += time.monotonic() - began
                if block is None:
                    return
                upcoming = background.submit(next, blocks, None)
                yield block

    def _activations(self, model: Harvestable, block: Block, sites: Sequence[Site]) -> dict[Site, Tensor]:
        everywhere = model.activations(block.tokens.to(model.device), sites)
        keep = block.keep.to(model.device)
        vectors = {site: everywhere[site][keep] for site in sites}
        for site in sites:
            if not torch.isfinite(vectors[site]).all():
                bad = (~torch.isfinite(everywhere[site])).any(-1).nonzero()
                row, position = bad[0].tolist()
                raise ValueError(
                    f"activations at {site} are not finite: {len(bad)} of {block.tokens.numel()} positions in one "
                    f"forward pass, the first in its row {row} at position {position}; float16 overflows in many "
                    "models, try model.dtype=bfloat16 or float32"
                )
        return vectors


def _kept(text: PackedTokens, count: int) -> Iterator[Block]:
    """The next blocks that have `count` positions to train on between them, and no block beyond."""
    for block in _with_kept(text):
        yield block
        count -= int(block.keep.sum())
        if count <= 0:
            return


def _with_kept(text: PackedTokens) -> Iterator[Block]:
    """The blocks that have a position to train on."""
    empty_epochs = text.epoch + 2
    for block in text:
        if block.keep.any():
            empty_epochs = text.epoch + 2
            yield block
        elif text.epoch >= empty_epochs:
            raise ValueError(
                "a whole pass over the text has no position to train on: every token is a special one, or skipped; "
                "see dataset.exclude_special_tokens, dataset.exclude_tokens, dataset.skip_positions and "
                "dataset.chat_roles"
            )


def require_memory(count: int, d_in: int, dtype: torch.dtype, sites: int) -> None:
    """Raise ValueError if memory cannot hold one shard of `count` vectors of each site."""
    needed = sites * count * d_in * dtype.itemsize
    require_free(
        needed,
        CPU,
        f"shards of {count:,} vectors (source.shard_tokens) at {sites} site{'s' * (sites > 1)}",
        f"lower source.shard_tokens to at most {int(0.8 * free_bytes() / needed * count)}",
    )

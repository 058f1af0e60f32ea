"""Harvesting: the language model runs over packed text, and its activations are gathered into shards."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fsae.language_models.sites import Site
from fsae.memory import CPU, free_bytes, require_free
from fsae.progress import Progress
from fsae.sources.corpus import Corpus
from fsae.sources.shard import Part, Shard, order_in_shard
from fsae.sources.shard_text import ShardText, TextPosition
from fsae.sources.tokens import Block
from fsae.wording import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Harvested:
    """One shard of each site from the same forward passes, all of the same positions.

    Attributes:
        shards: by site.
        text: the text's position after the shard; None if the shard was cut short, so that the next one begins
            elsewhere.
        text_ended: whether there is no more text.
        distinct: how many of the positions are from text that was not read before; they come first.
        skipped_rows: rows of the data set without a document, in the present pass over it.
        label_names: the texts for which numbers in the labels stand.
    """

    shards: dict[Site, Shard]
    text: dict[str, Any] | None
    text_ended: bool
    distinct: int
    skipped_rows: int
    label_names: list[str]


class Harvester:
    """Harvester, which runs a corpus's language model over its text, one shard at a time.

    Args:
        corpus: the language model and its text.
        shard_tokens: positions per shard.
        heartbeat: called after each forward pass; may raise to stop the harvest.

    Attributes:
        corpus: the language model and its text.
        seconds: time spent harvesting.
        text_seconds: the part of `seconds` in which text was not yet read and tokenised.
        tokens: positions harvested.
    """

    def __init__(self, corpus: Corpus, shard_tokens: int, heartbeat: Callable[[], None]):
        self.corpus = corpus
        self._shard_tokens, self._heartbeat = shard_tokens, heartbeat
        self._texts = {part: ShardText(partial(corpus.text, part), part, shard_tokens, self.beat) for part in Part}
        self._stopped = threading.Event()
        self._warned_of_end = False
        self.seconds = self.text_seconds = 0.0
        self.tokens = 0

    def stop(self) -> None:
        """End a harvest that runs in another thread after its present forward pass."""
        self._stopped.set()

    def beat(self) -> None:
        """Raise if the harvest is to stop."""
        if self._stopped.is_set():
            raise CancelledError("the harvest was stopped")
        self._heartbeat()

    @property
    def skipped_rows(self) -> int:
        """Rows of the data set without a document, in one pass over it, as far as it was read."""
        return max(text.skipped_rows for text in self._texts.values())

    def distinct(self, part: Part, number: int) -> int | None:
        """Return how many positions of a shard are from text that was not read before; None if it was not read here."""
        return self._texts[part].distinct.get(number)

    def is_before(self, part: Part, number: int) -> bool:
        """Return whether the text stands at the beginning of a shard, so that no known position is needed."""
        return self._texts[part].is_before(number)

    def harvest(
        self, part: Part, number: int, count: int, sites: Sequence[Site], known: TextPosition | None
    ) -> Harvested:
        """Harvest shard `number` of a part at all sites; it has fewer than `count` positions if the text ends.

        Args:
            count: positions, at most `shard_tokens`.
            known: the nearest known position in the text, where reading continues if the present one is farther away.

        Raises:
            ValueError: activations that are not finite, no memory for a shard, text without a position to train on.
        """
        shard_text = self._texts[part]
        text = shard_text.move_to(number, known)
        dtype = self.corpus.model.dtype
        widths = {site: self.corpus.width(site) for site in sites}
        require_memory(count, list(widths.values()), dtype)
        place_of = torch.argsort(order_in_shard(part, number, count))
        activations = {site: torch.empty(count, widths[site], dtype=dtype) for site in sites}
        facts = torch.empty(3, count, dtype=torch.long)
        filled = distinct = 0
        progress = Progress(f"harvesting {', '.join(map(str, sites))}, {part.value} shard {number}", count)
        try:
            for block in self._ahead(shard_text.blocks(count)):
                places = place_of[filled : filled + int(block.keep.sum())]
                vectors = self._activations(block, sites)
                for site in sites:
                    activations[site][places] = vectors[site][: len(places)].cpu()
                for row, fact in zip(facts, (block.tokens, block.documents, block.labels), strict=True):
                    row[places] = fact[block.keep][: len(places)]
                filled += len(places)
                distinct += min(block.distinct, len(places))
                if distinct < filled and part is Part.train and not self._warned_of_end:
                    self._warned_of_end = True
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
        shard_text.note(number, distinct, whole)
        tokens, documents, labels = facts[:, :filled]
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

    def _ahead(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Yield the blocks, reading and tokenising each while the one before it is in use."""
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

    def _activations(self, block: Block, sites: Sequence[Site]) -> dict[Site, Tensor]:
        everywhere = self.corpus.activations(block.tokens, sites)
        keep = block.keep.to(self.corpus.model.device)
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


def require_memory(count: int, widths: Sequence[int], dtype: torch.dtype) -> None:
    """Raise ValueError if memory cannot hold one shard of `count` vectors of each site, given the sites' widths."""
    vector = sum(widths) * dtype.itemsize
    require_free(
        vector * count,
        CPU,
        f"shards of {count:,} vectors (source.shard_tokens) at {counted(len(widths), 'site')}",
        f"lower source.shard_tokens to at most {int(0.8 * free_bytes() / vector)}",
    )

"""The text of one part of a data set, read one shard at a time."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fsae.progress import Progress
from fsae.sources.shard import Part
from fsae.sources.tokens import Block, PackedTokens


class TextPosition(NamedTuple):
    """A known position in the text of a part.

    Attributes:
        number: the shard that begins there.
        state: the text's state there.
    """

    number: int
    state: dict[str, Any]


class ShardText:
    """The text of one part, cut into shards.

    Shard i has the next `shard_tokens` kept positions after shard i - 1. The rest of the block in which a shard fills
    up is left out.

    Args:
        open_text: opens the text at its beginning.
        part: the part.
        shard_tokens: kept positions per shard.
        heartbeat: called after each block that is read over; may raise to stop.

    Attributes:
        distinct: how many positions of each shard that was read are from text that was not read before.
        skipped_rows: rows of the data set without a document in one pass over it, as far as it was read.
    """

    def __init__(
        self, open_text: Callable[[], PackedTokens], part: Part, shard_tokens: int, heartbeat: Callable[[], None]
    ):
        self._open_text, self._part, self._shard_tokens, self._heartbeat = open_text, part, shard_tokens, heartbeat
        self._text: PackedTokens | None = None
        # The shard that begins at the text's position; None if that is unknown.
        self._next: int | None = None
        self.distinct: dict[int, int] = {}
        self.skipped_rows = 0

    def is_before(self, number: int) -> bool:
        """Return whether the text stands at the beginning of a shard."""
        return self._next == number

    def move_to(self, number: int, known: TextPosition | None) -> PackedTokens:
        """Go to the beginning of a shard, from the present position or from a known one that is nearer.

        The shards in between are read over, at the tokenizer's speed.
        """
        at = self._next
        self._next = None
        if self._text is None or at is None or at > number or (known is not None and known.number > at):
            self._text, at = self._open_text(), 0
            if known is not None:
                at = known.number
                self._text.load_state_dict(known.state)
        if at < number:
            progress = Progress(f"reading over {self._part.value} text", (number - at) * self._shard_tokens)
            for earlier in range(at, number):
                passed = distinct = 0
                for block in self._kept(self._text, self._shard_tokens):
                    used = min(int(block.keep.sum()), self._shard_tokens - passed)
                    progress.advance(used)
                    passed += used
                    distinct += min(block.distinct, used)
                    self._heartbeat()
                self.note(earlier, distinct)
            progress.close()
        self._next = number
        return self._text

    def blocks(self, count: int) -> Iterator[Block]:
        """Read the next blocks that have `count` kept positions together. The position is unknown until `note`."""
        assert self._text is not None
        self._next = None
        return self._kept(self._text, count)

    def note(self, number: int, distinct: int, whole: bool = False) -> None:
        """Record what was read of a shard, and whether the next shard begins where it ended."""
        assert self._text is not None
        self.distinct[number] = distinct
        self.skipped_rows = max(self.skipped_rows, self._text.skipped_rows)
        if whole:
            self._next = number + 1

    def _kept(self, text: PackedTokens, count: int) -> Iterator[Block]:
        for block in self._with_kept(text):
            yield block
            count -= int(block.keep.sum())
            if count <= 0:
                return

    @staticmethod
    def _with_kept(text: PackedTokens) -> Iterator[Block]:
        """Yield the blocks that have a kept position."""
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

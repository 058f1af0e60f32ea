"""Tokens: documents packed into rows of equal length, with a mask of the positions that count."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fsae.sources.documents import Documents

# Documents are tokenised together until they hold this many characters: enough to keep the tokenizer's threads
# busy, little enough that what is left over when a checkpoint is written stays small.
_BATCH_CHARACTERS = 200_000


class Vocabulary(Protocol):
    """What packing needs of a language model."""

    name: str
    d_vocab: int
    context_limit: int
    bos_id: int | None
    separator_id: int
    special_ids: frozenset[int]

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens."""
        ...


class PackedTokens(Iterator[tuple[Int[Tensor, "row context"], Bool[Tensor, "row context"]]]):
    """Blocks of rows of token ids, and the mask of the positions to train and evaluate on.

    Documents follow one another, each ended by the separator, and are cut into rows of `context` tokens; where the
    model wants a BOS it is the first of each row. Token ids of a data set that is tokenised already are taken as
    they are.

    Args:
        documents: what to pack.
        vocabulary: whose token ids.
        rows: per block.
        context: tokens per row.
        skip_positions: how many positions at each row's start the mask leaves out.
        exclude_special_tokens: whether the mask leaves out BOS, separators and other special tokens.
        repeat: start the text again when it runs out. Otherwise the iteration ends, its last block may be shorter,
            and what does not fill a row is left out.

    Attributes:
        epoch: how often the text has started again.

    Raises:
        ValueError: a context beyond the model's limit; while iterating: a whole text shorter than one row, ids of
            another tokenizer.
    """

    def __init__(
        self,
        documents: Documents,
        vocabulary: Vocabulary,
        *,
        rows: int,
        context: int,
        skip_positions: int,
        exclude_special_tokens: bool,
        repeat: bool,
    ):
        if context > vocabulary.context_limit:
            raise ValueError(
                f"dataset.context is {context}, but model {vocabulary.name} takes at most "
                f"{vocabulary.context_limit} tokens"
            )
        self.epoch = 0
        self._documents, self._vocabulary = documents, vocabulary
        self._rows, self._context, self._repeat = rows, context, repeat
        self._skip_positions = skip_positions
        self._bos_id = None if documents.tokenised else vocabulary.bos_id
        self._text_per_row = context if self._bos_id is None else context - 1
        self._counts = torch.ones(vocabulary.d_vocab, dtype=torch.bool)
        if exclude_special_tokens:
            # A tokenizer may know special tokens that the model has no place for.
            excluded = {*vocabulary.special_ids, vocabulary.separator_id}
            self._counts[[token_id for token_id in excluded if token_id < vocabulary.d_vocab]] = False
        # Ids that are read but not handed out yet, and how many of this epoch's were read.
        self._pending = torch.empty(0, dtype=torch.long)
        self._read_this_epoch = 0

    def __next__(self) -> tuple[Int[Tensor, "row context"], Bool[Tensor, "row context"]]:
        while len(self._pending) < self._rows * self._text_per_row and self._read_more():
            pass
        rows = min(self._rows, len(self._pending) // self._text_per_row)
        if rows == 0:
            raise StopIteration
        used = rows * self._text_per_row
        tokens, self._pending = self._pending[:used].view(rows, -1), self._pending[used:]
        if self._bos_id is not None:
            tokens = torch.cat([tokens.new_full((rows, 1), self._bos_id), tokens], dim=1)
        keep = self._counts[tokens]
        keep[:, : self._skip_positions] = False
        return tokens, keep

    def state_dict(self) -> dict[str, Any]:
        """The position after the last block returned."""
        return {
            "documents": self._documents.state_dict(),
            # A clone, because saving a slice would save everything that was ever read with it.
            "pending": self._pending.clone(),
            "read_this_epoch": self._read_this_epoch,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position in the same text."""
        self._documents.load_state_dict(state["documents"])
        self._pending = state["pending"].clone()
        self._read_this_epoch = state["read_this_epoch"]
        self.epoch = state["epoch"]

    def _read_more(self) -> bool:
        """Add some documents' ids to the pending ones; False when the text has run out for good."""
        ids = self._next_ids()
        if ids:
            self._read_this_epoch += len(ids)
            self._pending = torch.cat([self._pending, torch.tensor(ids)])
            return True
        if self._read_this_epoch < self._text_per_row:
            raise ValueError(
                f"data set {self._documents.name}: its whole text is {self._read_this_epoch} tokens, shorter than one "
                f"context of {self._context}; use more text or lower dataset.context"
            )
        if self._repeat:
            self._documents.rewind()
            self._read_this_epoch = 0
            self.epoch += 1
        return self._repeat

    def _next_ids(self) -> list[int]:
        """The ids of the next documents, each with its separator; empty at the end of the text."""
        contents, size = [], 0
        while size < _BATCH_CHARACTERS and (document := next(self._documents, None)) is not None:
            contents.append(document.content)
            size += len(document.content)
        if self._documents.tokenised:
            ids = [token_id for content in contents for token_id in content]
            self._check_ids(ids)
            return ids
        separator = self._vocabulary.separator_id
        return [token_id for text in self._vocabulary.tokenise(contents) for token_id in (*text, separator)]

    def _check_ids(self, ids: list[int]) -> None:
        d_vocab = self._vocabulary.d_vocab
        wrong = next((token_id for token_id in ids if not 0 <= token_id < d_vocab), None)
        if wrong is not None:
            raise ValueError(
                f"data set {self._documents.name} holds the token id {wrong}, but model {self._vocabulary.name} has "
                f"{d_vocab} ids: it was tokenised for another model; choose that model, or a data set of text"
            )

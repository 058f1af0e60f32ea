"""Tokens: documents packed into rows of equal length, with a mask of the positions that count."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

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
    bos_token_id: int | None
    separator_id: int
    special_ids: frozenset[int]

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens."""
        ...


# The label of a token whose document has none.
NO_LABEL = -1


class Block(NamedTuple):
    """Some rows of text.

    Attributes:
        tokens: ids.
        keep: the positions to train and evaluate on.
        documents: which document of its part each token is from, counted from 0; a BOS belongs to what follows it.
        labels: that document's label, or `NO_LABEL`: a whole number as it is, text as its place in `label_names`.
    """

    tokens: Int[Tensor, "row context"]
    keep: Bool[Tensor, "row context"]
    documents: Int[Tensor, "row context"]
    labels: Int[Tensor, "row context"]


class PackedTokens(Iterator[Block]):
    """Blocks of rows of token ids, with the mask of the positions to train and evaluate on.

    Documents follow one another, each ended by the separator, and are cut into rows of `context` tokens. Where a BOS is
    wanted it is the first token of each row, as sae_lens has it.

    Args:
        documents: what to pack.
        vocabulary: whose token ids.
        rows: per block.
        context: tokens per row.
        skip_positions: how many positions at each row's start the mask leaves out.
        exclude_special_tokens: whether the mask leaves out BOS, separators and other special tokens.
        prepend_bos: whether each row begins with the model's BOS. With None it does where the model's own tokenizer
            puts one before a text; the token ids of a data set that is tokenised already are then taken as they are.
        repeat: start the text again when it runs out. Otherwise the iteration ends, its last block may be shorter,
            and what does not fill a row is left out.

    Attributes:
        epoch: how often the text has started again.
        labelled: whether its documents have labels.
        label_names: labels that are text, in the order in which the documents bring them.
        prepends_bos: whether each row begins with a BOS.

    Raises:
        ValueError: a context beyond the model's limit, a BOS asked for that the model does not have; while iterating:
            a whole text shorter than one row, ids of another tokenizer, labels that are neither whole numbers nor text.
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
        prepend_bos: bool | None = None,
        repeat: bool,
    ):
        if context > vocabulary.context_limit:
            raise ValueError(
                f"dataset.context is {context}, but model {vocabulary.name} takes at most "
                f"{vocabulary.context_limit} tokens; set it to at most that"
            )
        if prepend_bos and vocabulary.bos_token_id is None:
            raise ValueError(
                f"dataset.prepend_bos is true, but the tokenizer of model {vocabulary.name} has no BOS token; set it "
                "to false, or to null for the model's own convention"
            )
        self.epoch = 0
        self.labelled = documents.labelled
        self.label_names: list[str] = []
        self._documents, self._vocabulary = documents, vocabulary
        self._rows, self._context, self._repeat = rows, context, repeat
        self._skip_positions = skip_positions
        if prepend_bos is None:
            self._bos_id = None if documents.tokenised else vocabulary.bos_id
        else:
            self._bos_id = vocabulary.bos_token_id if prepend_bos else None
        self.prepends_bos = self._bos_id is not None
        self._text_per_row = context if self._bos_id is None else context - 1
        self._counts = torch.ones(vocabulary.d_vocab, dtype=torch.bool)
        if exclude_special_tokens:
            # A tokenizer may know special tokens that the model has no place for.
            excluded = {*vocabulary.special_ids, vocabulary.separator_id}
            self._counts[[token_id for token_id in excluded if token_id < vocabulary.d_vocab]] = False
        # What is read but not handed out yet: ids, their documents, their labels. How much of this epoch's was read.
        self._pending = torch.empty(3, 0, dtype=torch.long)
        self._read_this_epoch = self._documents_this_epoch = 0

    def __next__(self) -> Block:
        while self._pending.shape[1] < self._rows * self._text_per_row and self._read_more():
            pass
        rows = min(self._rows, self._pending.shape[1] // self._text_per_row)
        if rows == 0:
            raise StopIteration
        used = rows * self._text_per_row
        block, self._pending = self._pending[:, :used].view(3, rows, -1), self._pending[:, used:]
        if self._bos_id is not None:
            block = torch.cat([block[:, :, :1], block], dim=2)
            block[0, :, 0] = self._bos_id
        tokens, documents, labels = block
        keep = self._counts[tokens]
        keep[:, : self._skip_positions] = False
        return Block(tokens, keep, documents, labels)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last block returned."""
        return {
            "documents": self._documents.state_dict(),
            # A clone, because saving a slice would save everything that was ever read with it.
            "pending": self._pending.clone(),
            "read_this_epoch": self._read_this_epoch,
            "documents_this_epoch": self._documents_this_epoch,
            "epoch": self.epoch,
            "label_names": list(self.label_names),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position in the same text."""
        self._documents.load_state_dict(state["documents"])
        self._pending = state["pending"].clone()
        self._read_this_epoch = state["read_this_epoch"]
        self._documents_this_epoch = state["documents_this_epoch"]
        self.epoch = state["epoch"]
        self.label_names = list(state["label_names"])

    def _read_more(self) -> bool:
        """Add some documents to what is pending; False when the text has run out for good."""
        read = self._next_documents()
        if read.shape[1] > 0:
            self._read_this_epoch += read.shape[1]
            self._pending = torch.cat([self._pending, read], dim=1)
            return True
        if self._read_this_epoch < self._text_per_row:
            raise ValueError(
                f"data set {self._documents.name}: its whole text is {self._read_this_epoch} tokens, shorter than one "
                f"context of {self._context}; use more text or lower dataset.context"
            )
        if self._repeat:
            self._documents.rewind()
            self._read_this_epoch = self._documents_this_epoch = 0
            self.epoch += 1
        return self._repeat

    def _next_documents(self) -> Int[Tensor, "3 tokens"]:
        """The next documents' ids, each with its separator, places and labels; empty at the end of the text."""
        documents, size = [], 0
        while size < _BATCH_CHARACTERS and (document := next(self._documents, None)) is not None:
            documents.append(document)
            size += len(document.content)
        if self._documents.tokenised:
            ids = [document.content for document in documents]
            self._check_ids([token_id for content in ids for token_id in content])
        else:
            texts = self._vocabulary.tokenise([document.content for document in documents])
            ids = [[*text, self._vocabulary.separator_id] for text in texts]
        lengths = torch.tensor([len(each) for each in ids], dtype=torch.long)
        places = torch.arange(len(documents)) + self._documents_this_epoch
        labels = torch.tensor([self._label(document.label) for document in documents], dtype=torch.long)
        self._documents_this_epoch += len(documents)
        flat = torch.tensor([token_id for each in ids for token_id in each], dtype=torch.long)
        return torch.stack([flat, places.repeat_interleave(lengths), labels.repeat_interleave(lengths)])

    def _label(self, label: Any) -> int:
        if label is None:
            return NO_LABEL
        if isinstance(label, str):
            if label not in self.label_names:
                self.label_names.append(label)
            return self.label_names.index(label)
        if isinstance(label, int):
            return int(label)
        raise ValueError(
            f"data set {self._documents.name} has the label {label!r}; labels are whole numbers or text: correct "
            "dataset.label_column, or set it to null"
        )

    def _check_ids(self, ids: list[int]) -> None:
        d_vocab = self._vocabulary.d_vocab
        wrong = next((token_id for token_id in ids if not 0 <= token_id < d_vocab), None)
        if wrong is not None:
            raise ValueError(
                f"data set {self._documents.name} holds the token id {wrong}, but model {self._vocabulary.name} has "
                f"{d_vocab} ids: it was tokenised for another model; choose that model, or a data set of text"
            )

"""Tokens: documents packed into rows of equal length, with a mask of the positions to train and evaluate on."""

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fsae.language_models.chat import UnwritableChat
from fsae.sources.chats import Message
from fsae.sources.documents import Document, Documents

log = logging.getLogger(__name__)

# Documents are tokenised together until they have this many characters: enough to keep the tokenizer's threads busy,
# and few enough that resuming from a saved position, which reads the last documents again, takes no time.
BATCH_CHARACTERS = 200_000
# Runs of one id at the beginning or the end of rows are taken for padding if they hold a larger share of all ids.
_SHARE_OF_PADDING = 0.1


class Vocabulary(Protocol):
    """The part of a language model that packing needs."""

    name: str
    d_vocab: int
    context_limit: int
    bos_id: int | None
    bos_token_id: int | None
    separator_id: int
    special_ids: frozenset[int]

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens."""
        ...

    def tokenise_chat(self, messages: Sequence[Message], roles: Sequence[str] | None) -> tuple[list[int], list[bool]]:
        """Return the token ids of a chat, and which of them count.

        Raises:
            UnwritableChat: the chat template cannot write it.
        """
        ...


def special_tokens(vocabulary: Vocabulary) -> list[int]:
    """Return the ids that `dataset.exclude_special_tokens` leaves out, ascending."""
    # A tokenizer may have special tokens that are not in the model's vocabulary.
    ids = {*vocabulary.special_ids, vocabulary.separator_id}
    return sorted(token_id for token_id in ids if token_id < vocabulary.d_vocab)


# The label of a token whose document has none.
NO_LABEL = -1


class Block(NamedTuple):
    """Rows of text.

    Attributes:
        tokens: token ids.
        keep: the positions to train and evaluate on.
        documents: the number of each token's document in its part, counted from 0; a BOS belongs to the document that
            follows it.
        labels: the label of that document, or `NO_LABEL`. A whole number stands for itself, text for its index in
            `label_names`.
        distinct: how many of the kept positions are from text that was not read before; they come first.
    """

    tokens: Int[Tensor, "row context"]
    keep: Bool[Tensor, "row context"]
    documents: Int[Tensor, "row context"]
    labels: Int[Tensor, "row context"]
    distinct: int


class TextRows(NamedTuple):
    """Rows of text from one part of a data set.

    Attributes:
        tokens: token ids.
        keep: the positions to train and evaluate on.
        documents: the number of each token's document in its part.
    """

    tokens: Int[Tensor, "row context"]
    keep: Bool[Tensor, "row context"]
    documents: Int[Tensor, "row context"]


class PackedTokens(Iterator[Block]):
    """Blocks of rows of token ids, with the mask of the positions to train and evaluate on.

    Documents follow one another, each with a separator at its end, and are cut into rows of `context` tokens. If rows
    begin with a BOS, it is the first token of each row, as in sae_lens, and the prefix follows it. The padding of a
    data set that is already tokenised is left out.

    Args:
        documents: the documents to pack.
        vocabulary: the language model that reads the tokens.
        rows: rows per block.
        context: tokens per row.
        skip_positions: how many positions at the start of each row the mask leaves out.
        exclude_special_tokens: whether the mask leaves out BOS, separators and other special tokens.
        prepend_bos: whether each row begins with the model's BOS. If it is None, rows begin with one if the model's own
            tokenizer puts one before a text; the token ids of a data set that is already tokenised are used unchanged.
        repeat: whether the text starts again at its end. Otherwise the iteration ends, its last block may be shorter,
            and tokens that do not fill a row are left out.
        exclude_tokens: further ids that the mask leaves out.
        prefix: text at the start of each row, after a BOS; the mask leaves it out.
        chat_roles: the roles whose messages the mask keeps; None for all roles and the template's own text.
        batch_characters: documents are tokenised together until they have this many characters.

    Attributes:
        epoch: number of completed passes over the text.
        labelled: whether its documents have labels.
        label_names: labels that are text, in the order in which the documents bring them.
        prepends_bos: whether each row begins with a BOS.

    Raises:
        ValueError: a context beyond the model's limit or filled by the prefix, a BOS that the model does not have, ids
            to leave out that the model does not have; while iterating: a whole text shorter than one row, ids of
            another tokenizer, labels that are neither whole numbers nor text, chats without a template.
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
        exclude_tokens: Sequence[int] = (),
        prefix: str | None = None,
        chat_roles: Sequence[str] | None = None,
        batch_characters: int = BATCH_CHARACTERS,
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
        self._skip_positions, self._chat_roles, self._batch_characters = skip_positions, chat_roles, batch_characters
        if prepend_bos is None:
            self._bos_id = None if documents.tokenised else vocabulary.bos_id
        else:
            self._bos_id = vocabulary.bos_token_id if prepend_bos else None
        self.prepends_bos = self._bos_id is not None
        # The tokens at the start of every row.
        self._opening = [] if self._bos_id is None else [self._bos_id]
        self._prefix_begins = len(self._opening)
        self._opening += vocabulary.tokenise([prefix])[0] if prefix else []
        self._text_per_row = context - len(self._opening)
        if self._text_per_row < 1 or skip_positions >= context:
            raise ValueError(
                f"dataset.prefix is {len(self._opening) - self._prefix_begins} tokens long, which leaves none of the "
                f"{context} positions of dataset.context; shorten it, or raise dataset.context"
            )
        self._counts = torch.ones(vocabulary.d_vocab, dtype=torch.bool)
        if exclude_special_tokens:
            self._counts[special_tokens(vocabulary)] = False
        for token_id in exclude_tokens:
            if token_id >= vocabulary.d_vocab:
                raise ValueError(
                    f"dataset.exclude_tokens has {token_id}, but model {vocabulary.name} has the ids 0 to "
                    f"{vocabulary.d_vocab - 1}"
                )
            self._counts[token_id] = False
        # Tokens that were read and not yet returned: ids, their documents, their labels, whether they may count.
        self._pending = torch.empty(4, 0, dtype=torch.long)
        # The batches of documents that these are from: the position of each in the text, and its remaining tokens.
        self._batches: deque[tuple[dict[str, Any], int]] = deque()
        # How many tokens of the first batch were returned.
        self._used = 0
        self._read_this_epoch = self._documents_this_epoch = 0
        self._looked_for_padding = not repeat

    @property
    def skipped_rows(self) -> int:
        """Rows without a document in the present pass over the data set."""
        return self._documents.skipped

    def __next__(self) -> Block:
        while self._pending.shape[1] < self._rows * self._text_per_row and self._read_more():
            pass
        rows = min(self._rows, self._pending.shape[1] // self._text_per_row)
        if rows == 0:
            raise StopIteration
        block, new = self._take(rows * self._text_per_row)
        is_new = (torch.arange(block.shape[1]) < new).view(rows, -1)
        block = block.view(4, rows, -1)
        if self._opening:
            # These tokens belong to the document that follows.
            opening = block[:, :, :1].expand(-1, -1, len(self._opening)).clone()
            opening[0] = torch.tensor(self._opening)
            block = torch.cat([opening, block], dim=2)
            is_new = torch.cat([is_new[:, :1].expand(-1, len(self._opening)), is_new], dim=1)
        tokens, documents, labels, counting = block
        keep = self._counts[tokens] & counting.bool()
        keep[:, : self._skip_positions] = False
        keep[:, self._prefix_begins : len(self._opening)] = False
        return Block(tokens, keep, documents, labels, int((keep & is_new).sum()))

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last block, from which the text itself is read again: the first batch of
        documents that is not used up, and how many of its tokens are used."""
        position = self._batches[0][0] if self._batches else self._position()
        return position | {"used": self._used, "label_names": self.label_names[: position["label_names"]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position in the same text."""
        self._documents.load_state_dict(state["documents"])
        self._read_this_epoch = state["read_this_epoch"]
        self._documents_this_epoch = state["documents_this_epoch"]
        self.epoch = state["epoch"]
        self.label_names = list(state["label_names"])
        self._pending = self._pending[:, :0]
        self._batches.clear()
        self._used = 0
        if state["used"]:
            self._read_more()
            self._take(state["used"])

    def _position(self) -> dict[str, Any]:
        """Return the position from which the next documents will be read."""
        return {
            "documents": self._documents.state_dict(),
            "read_this_epoch": self._read_this_epoch,
            "documents_this_epoch": self._documents_this_epoch,
            "epoch": self.epoch,
            "label_names": len(self.label_names),
        }

    def _take(self, count: int) -> tuple[Int[Tensor, "4 count"], int]:
        """Return the next pending tokens, and how many of them are from the first pass over the text."""
        taken, self._pending = self._pending[:, :count], self._pending[:, count:]
        new = 0
        while count > 0:
            position, left = self._batches[0]
            used = min(count, left)
            count -= used
            new += used if position["epoch"] == 0 else 0
            self._used += used
            if used == left:
                self._batches.popleft()
                self._used = 0
            else:
                self._batches[0] = position, left - used
        return taken, new

    def _read_more(self) -> bool:
        """Read further documents; return False if the text has ended for good."""
        position = self._position()
        read = self._next_documents()
        if read is not None:
            if read.shape[1] > 0:
                self._read_this_epoch += read.shape[1]
                self._pending = torch.cat([self._pending, read], dim=1)
                self._batches.append((position, read.shape[1]))
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

    def _next_documents(self) -> Int[Tensor, "4 tokens"] | None:
        """Return the next documents' ids with separators, document numbers, labels and whether they may count; None at
        the end of the text."""
        documents, size = [], 0
        while size < self._batch_characters and (document := next(self._documents, None)) is not None:
            documents.append(document)
            size += document.size
        if not documents:
            return None
        counting: list[list[bool]] | None = None
        if self._documents.tokenised:
            ids = [document.content for document in documents]
            self._check_ids([token_id for content in ids for token_id in content])
            self._look_for_padding(ids)
        elif self._documents.chats:
            documents, ids, counting = self._chats(documents)
        else:
            texts = self._vocabulary.tokenise([document.content for document in documents])
            ids = [[*text, self._vocabulary.separator_id] for text in texts]
        lengths = torch.tensor([len(each) for each in ids], dtype=torch.long)
        places = torch.arange(len(documents)) + self._documents_this_epoch
        labels = torch.tensor([self._label(document.label) for document in documents], dtype=torch.long)
        self._documents_this_epoch += len(documents)
        flat = torch.tensor([token_id for each in ids for token_id in each], dtype=torch.long)
        counts = torch.ones_like(flat)
        if counting is not None:
            counts = torch.tensor([each for chat in counting for each in chat], dtype=torch.long)
        return torch.stack([flat, places.repeat_interleave(lengths), labels.repeat_interleave(lengths), counts])

    def _chats(self, documents: list[Document]) -> tuple[list[Document], list[list[int]], list[list[bool]]]:
        """Return the chats that the template can write, their ids and which of these may count."""
        written, ids, counting = [], [], []
        for document in documents:
            try:
                chat, counts = self._vocabulary.tokenise_chat(cast(list[Message], document.content), self._chat_roles)
            except UnwritableChat as reason:
                self._documents.reject(document, str(reason))
                continue
            if chat and chat[0] == self._bos_id:
                # Each row has a BOS; templates write another.
                chat, counts = chat[1:], counts[1:]
            written.append(document)
            ids.append([*chat, self._vocabulary.separator_id])
            counting.append([*counts, self._chat_roles is None])
        return written, ids, counting

    def _look_for_padding(self, rows: list[list[int]]) -> None:
        """Warn, once, of rows that look padded and have no mask."""
        if self._looked_for_padding or self._documents.masked:
            return
        self._looked_for_padding = True
        runs: Counter[int] = Counter()
        for row in rows:
            for end in (row, row[::-1]):
                length = next((place for place, token_id in enumerate(end) if token_id != end[0]), 0)
                if length > 1:
                    runs[end[0]] += length
        size = sum(map(len, rows))
        for token_id, count in runs.most_common(1):
            if count > _SHARE_OF_PADDING * size:
                log.warning(
                    "data set %s: %.0f %% of its token ids are runs of %d at the beginning or the end of rows, which "
                    "looks like padding, and there is no mask; name the mask by dataset.mask_column, or leave that id "
                    "out of training by dataset.exclude_tokens=[%d]",
                    self._documents.name, 100 * count / size, token_id, token_id,
                )  # fmt: skip

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

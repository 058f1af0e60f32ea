"""Activations of texts that an evaluation chooses, read once for all dictionaries at some sites and kept on disk."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.evaluation.kept import digest_of_texts, kept
from fsae.language_models.activations import joined_at
from fsae.progress import Progress
from fsae.sources.massive import within_all
from fsae.sources.source import HeldOutText

if TYPE_CHECKING:
    from fsae.language_models.transformer_lens import TransformerLensModel

# Tokens of one forward pass, about.
_TOKENS_AT_ONCE = 2048


class Positions(Enum):
    """Tokens of a text whose activations are read.

    Attributes:
        all: every token of the text, without BOS and other special tokens.
        last: the last token of the text.
    """

    all = "all"
    last = "last"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The way in which texts are read.

    Attributes:
        positions: tokens whose activations are read.
        tokens: the most tokens of a text, without a BOS; a longer one is cut.
        from_end: whether a cut text keeps its end and not its beginning.
    """

    positions: Positions = Positions.all
    tokens: int = 128
    from_end: bool = False


@dataclass(frozen=True, eq=False)
class TextActivations:
    """Raw activations of texts, text by text; those at several sites are side by side.

    Attributes:
        vectors: (tokens, d_in) in the model's type, on the CPU.
        ids: (tokens,) token ids.
        places: (tokens,) place of each token in its text, counted from 0 without a BOS.
        starts: (texts + 1,) where the tokens of each text begin; a text may have none.
    """

    vectors: Float[Tensor, "tokens d_in"]
    ids: Int[Tensor, " tokens"]
    places: Int[Tensor, " tokens"]
    starts: Int[Tensor, " texts+1"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def texts(self) -> Int[Tensor, " tokens"]:
        """Return the number of each token's text."""
        return torch.repeat_interleave(torch.arange(len(self)), self.starts.diff())

    def of_tokens(self, kept: Tensor) -> "TextActivations":
        """Return the same texts with some of their tokens only, which a mask names."""
        counts = torch.zeros(len(self), dtype=torch.long).index_add(
            0, self.texts[kept], torch.ones(int(kept.sum()), dtype=torch.long)
        )
        starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
        return replace(self, vectors=self.vectors[kept], ids=self.ids[kept], places=self.places[kept], starts=starts)


def joined(parts: Sequence[TextActivations]) -> TextActivations:
    """Return the texts of several readings as one."""
    counts = torch.cat([part.starts.diff() for part in parts])
    return TextActivations(
        torch.cat([part.vectors for part in parts]),
        torch.cat([part.ids for part in parts]),
        torch.cat([part.places for part in parts]),
        torch.cat([torch.zeros(1, dtype=counts.dtype), counts.cumsum(0)]),
    )


def text_activations(
    text: HeldOutText,
    texts: Sequence[str],
    reading: Reading,
    label: str,
    heartbeat: Callable[[], None] = lambda: None,
) -> TextActivations:
    """Return the activations of texts at the sites of the source's inputs.

    Each text is read alone, and begins as the rows of training do: with a BOS if they have one. Activations are kept
    next to the activation stores, under the identity of the models, the sites, the texts and the reading. So other
    dictionaries at these sites, and the same command after a kill, need no language model for them. Massive activations
    (`source.max_norm_multiple`) are left out of `Positions.all`, as they are of training.

    Args:
        text: the source's language model and sites.
        texts: the texts.
        reading: which tokens are read.
        label: the progress line.
        heartbeat: called after each forward pass; may raise to stop.

    Raises:
        ValueError: a text has no token.
    """
    content = {
        "texts": digest_of_texts(texts),
        "count": len(texts),
        **{name: value.name if isinstance(value, Enum) else value for name, value in asdict(reading).items()},
    }

    def compute() -> dict[str, Tensor]:
        read = _activations(text, texts, reading, label, heartbeat)
        return {each.name: getattr(read, each.name) for each in fields(read)}

    found = TextActivations(**kept(text, content, compute))
    limits = text.input_limits
    if limits is None or reading.positions is Positions.last:
        return found
    return found.of_tokens(within_all(text.input_layout.split(found.vectors), limits))


def token_ids(model: "TransformerLensModel", texts: Sequence[str], reading: Reading) -> list[list[int]]:
    """Return the token ids of each text as they are read, without a BOS.

    Raises:
        ValueError: a text has no token.
    """
    rows = [ids[-reading.tokens :] if reading.from_end else ids[: reading.tokens] for ids in model.tokenise(texts)]
    for number, ids in enumerate(rows):
        if not ids:
            raise ValueError(f"text {number} of {len(rows)} has no token: {texts[number]!r}; leave it out")
    return rows


@torch.no_grad()
def _activations(
    text: HeldOutText, texts: Sequence[str], reading: Reading, label: str, heartbeat: Callable[[], None]
) -> TextActivations:
    model = text.model
    bos = [] if not text.prepends_bos else [model.bos_token_id]
    room_for_text = min(text.model_at(site).context_limit for site in text.sites.input) - len(bos)
    rows = token_ids(model, texts, replace(reading, tokens=min(reading.tokens, room_for_text)))
    starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    if reading.positions is Positions.last:
        starts = torch.arange(len(rows) + 1)
    ids = torch.zeros(int(starts[-1]), dtype=torch.long)
    places = torch.zeros_like(ids)
    vectors: Tensor | None = None
    progress = Progress(label, sum(map(len, rows)))
    # Texts of about one length together, so that there is little padding. A causal model's activations do not depend
    # on what follows, so padding at the end changes none.
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    while order:
        width = len(rows[order[0]])
        some: list[int] = []
        while order and len(some) * len(rows[order[0]]) < _TOKENS_AT_ONCE:
            some.append(order.pop(0))
            width = len(rows[some[-1]])
        padded = torch.full((len(some), len(bos) + width), model.separator_id)
        for place, number in enumerate(some):
            padded[place, : len(bos) + len(rows[number])] = torch.tensor([*bos, *rows[number]])
        read = joined_at(text.model_at, padded, text.sites.input).cpu()
        if vectors is None:
            vectors = torch.zeros(len(ids), read.shape[-1], dtype=read.dtype)
        for place, number in enumerate(some):
            length, begin = len(rows[number]), int(starts[number])
            wanted = range(length) if reading.positions is Positions.all else range(length - 1, length)
            own = slice(begin, begin + len(wanted))
            vectors[own] = read[place, len(bos) + wanted.start : len(bos) + wanted.stop]
            ids[own] = torch.tensor(rows[number][wanted.start : wanted.stop])
            places[own] = torch.arange(wanted.start, wanted.stop)
        progress.advance(sum(len(rows[number]) for number in some))
        heartbeat()
    progress.close()
    assert vectors is not None
    found = TextActivations(vectors, ids, places, starts)
    if reading.positions is Positions.last:
        return found
    return found.of_tokens(~torch.isin(ids, torch.tensor(sorted(model.special_ids))))

"""A small stream of activations without a language model: listed texts, bytes as tokens, a table as the model."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fsae.language_models.sites import Site, SiteName
from fsae.sources.activations import ActivationSource, ActivationSourceSettings
from fsae.sources.documents import Document, Documents
from fsae.sources.tokens import PackedTokens

SITE = Site(name=SiteName.resid_post, layer=0)
D_IN = 6
CONTEXT = 8
WORDS = ("a", "stream", "of", "words", "that", "no", "two", "rows", "share")
TEXTS = [f"{word} " * (3 + i % 4) for i, word in enumerate(WORDS)]


class ListedDocuments:
    """Documents from a list, read in order."""

    name = "listed"
    tokenised = False

    def __init__(self, texts: Sequence[str]):
        self.texts, self.position = list(texts), 0

    def rewind(self) -> None:
        self.position = 0

    def __next__(self) -> Document:
        if self.position == len(self.texts):
            raise StopIteration
        self.position += 1
        return Document(content=self.texts[self.position - 1])

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class Bytes:
    """Bytes as tokens, 0 between documents."""

    name = "bytes"
    d_vocab = 257
    context_limit = 64
    bos_id: int | None = None
    separator_id = 0
    special_ids = frozenset({0})

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + 1 for byte in text.encode()] for text in texts]


class TableModel:
    """Activations are random rows, one for each token, turned a little with the position; counts its passes."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, d_in: int = D_IN):
        generator = torch.Generator().manual_seed(7)
        self.table = torch.randn(Bytes.d_vocab, d_in, generator=generator)
        self.positions = torch.randn(CONTEXT, d_in, generator=generator)
        self.passes = 0

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        self.passes += 1
        return {sites[0]: self.table[tokens] + self.positions}


def packed(texts: Sequence[str], repeat: bool) -> PackedTokens:
    """Rows of `CONTEXT` tokens, two a block, so that a buffer ends within one."""
    documents = cast(Documents, ListedDocuments(texts))
    return PackedTokens(
        documents, Bytes(), rows=2, context=CONTEXT, skip_positions=0, exclude_special_tokens=True, repeat=repeat
    )


def activation_source(
    buffer_tokens: int = 70,
    passes: int = 2,
    seed: int = 0,
    model: TableModel | None = None,
    heartbeat: Callable[[], None] = lambda: None,
) -> ActivationSource:
    """A fresh source at its beginning; two with the same arguments give the same vectors."""
    return ActivationSource(
        model or TableModel(),
        SITE,
        D_IN,
        packed(TEXTS, repeat=True),
        packed(TEXTS[::-1], repeat=False),
        ActivationSourceSettings(buffer_tokens=buffer_tokens, passes=passes),
        seed,
        heartbeat,
    )

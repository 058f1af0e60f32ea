"""A small stream of activations without a language model: listed texts, bytes as tokens, a table as the model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fsae.language_models.chat import UnwritableChat
from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.sites import Site, SiteName
from fsae.sources.activation_store import ActivationStore
from fsae.sources.activations import ActivationSource
from fsae.sources.corpus import Corpus
from fsae.sources.documents import Document, Documents
from fsae.sources.harvest import Harvester
from fsae.sources.layout import Sites, layout_of
from fsae.sources.passes import Passes
from fsae.sources.room import Room
from fsae.sources.shard import Extent, Part
from fsae.sources.shard_reader import ShardReader
from fsae.sources.tokens import PackedTokens

SITE = Site(name=SiteName.resid_post, layer=0)
OTHER_SITE = Site(name=SiteName.mlp_out, layer=1)
PASSES = Passes(model=ModelSettings(package=Package.tiny), dtype="float32", rows=4)
D_IN = 6
CONTEXT = 8
WORDS = ("a", "stream", "of", "words", "that", "no", "two", "rows", "share")
TEXTS = [f"{word} " * (3 + i % 4) for i, word in enumerate(WORDS)]


class ListedDocuments:
    """Documents from a list, read in order; with or without labels."""

    name = "listed"
    tokenised = False
    chats = False
    masked = False
    skipped = 0

    def __init__(self, texts: Sequence[str], labels: Sequence[Any] | None = None):
        self.texts, self.position = list(texts), 0
        self.labels, self.labelled = labels, labels is not None

    def rewind(self) -> None:
        self.position = 0

    def __next__(self) -> Document:
        if self.position == len(self.texts):
            raise StopIteration
        self.position += 1
        label = self.labels[self.position - 1] if self.labels else None
        return Document(content=self.texts[self.position - 1], label=label)

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
    bos_token_id: int | None = None
    separator_id = 0
    special_ids = frozenset({0})

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + 1 for byte in text.encode()] for text in texts]

    def tokenise_chat(
        self, messages: Sequence[dict[str, Any]], roles: Sequence[str] | None
    ) -> tuple[list[int], list[bool]]:
        """Each message's text and nothing around it; one of the role "system" cannot be written."""
        ids, counts = [], []
        for message in messages:
            if message["role"] == "system":
                raise UnwritableChat("holds a system message")
            (text,) = self.tokenise([message["content"]])
            ids += text
            counts += [roles is None or message["role"] in roles] * len(text)
        return ids, counts


class TableModel:
    """Activations are random rows, one for each token, turned a little with the position, and another site's are twice
    as long; counts its passes."""

    dtype = torch.float32
    device = torch.device("cpu")
    bos_id: int | None = None

    def __init__(self, d_in: int = D_IN):
        generator = torch.Generator().manual_seed(7)
        self.table = torch.randn(Bytes.d_vocab, d_in, generator=generator)
        self.positions = torch.randn(CONTEXT, d_in, generator=generator)
        self.passes = 0

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        self.passes += 1
        vectors = self.table[tokens] + self.positions
        return {site: vectors if site == SITE else 2 * vectors for site in sites}

    def width(self, site: Site) -> int:
        return self.table.shape[1]


def packed(texts: Sequence[str], repeat: bool, labels: Sequence[Any] | None = None) -> PackedTokens:
    """Rows of `CONTEXT` tokens, two a block, so that a shard ends within one."""
    documents = cast(Documents, ListedDocuments(texts, labels))
    return PackedTokens(
        documents, Bytes(), rows=2, context=CONTEXT, skip_positions=0, exclude_special_tokens=True, repeat=repeat
    )


class ListedCorpus:
    """The listed texts for training, the same ones in another order as the held-out part, and a table as the model."""

    dataset_name = "listed"
    prepends_bos = False
    held_out_positions = Corpus.held_out_positions
    held_out_rows = Corpus.held_out_rows
    rows = Corpus.rows
    activations = Corpus.activations
    width = Corpus.width

    def __init__(
        self,
        model: TableModel,
        train: Sequence[str] = TEXTS,
        held_out: Sequence[str] = TEXTS[::-1],
        labels: Sequence[Any] | None = None,
    ):
        self.model, self._labels = model, labels
        self._texts = {Part.train: train, Part.held_out: held_out}
        self.labelled = labels is not None

    def model_at(self, site: Site) -> TableModel:
        return self.model

    def text(self, part: Part) -> PackedTokens:
        return packed(self._texts[part], repeat=part is Part.train, labels=self._labels)


def listed_shards(
    folder: Path | None = None,
    *,
    tokens: int = 70,
    shard_tokens: int = 40,
    held_out_tokens: int = 60,
    model: TableModel | None = None,
    heartbeat: Callable[[], None] = lambda: None,
    sites: Sequence[Site] = (SITE,),
    read: int = 1,
    streams: Sequence[Sequence[Site]] | None = None,
    limit_gb: float | None = None,
    required: bool = True,
    **texts: Any,
) -> ShardReader:
    """Shards of the listed texts at the first `read` sites, or of several streams, kept in stores below `folder` if
    there is one."""
    corpus = ListedCorpus(model or TableModel(), **texts)
    return ShardReader(
        Harvester(cast(Corpus, corpus), shard_tokens, heartbeat),
        streams or [sites[:read]],
        {site: ActivationStore(folder / str(site), {"site": str(site)}) for site in sites} if folder else {},
        Extent(tokens={Part.train: tokens, Part.held_out: held_out_tokens}, shard_tokens=shard_tokens),
        Room(folder=folder or Path(), limit_gb=limit_gb, required=required),
    )


def activation_source(
    folder: Path | None = None,
    *,
    seed: int = 0,
    training_tokens: int = 10_000,
    max_norm_multiple: float | None = 10.0,
    max_norm: float | None = None,
    read: Sites | None = None,
    reader: ShardReader | None = None,
    partners: bool = False,
    **shards: Any,
) -> ActivationSource:
    """A fresh source at its beginning; two with the same arguments give the same vectors.

    It has a reader of its own, unless it shares one with other streams.
    """
    read = read or Sites((SITE,), (SITE,))
    others = {} if read.plain else {"sites": read.all, "read": len(read.all)}
    inputs, targets = (layout_of(sites, [D_IN] * len(sites)) for sites in read)
    return ActivationSource(
        reader or listed_shards(folder, **others, **shards),
        sites=read,
        input_layout=inputs,
        target_layout=targets,
        seed=seed,
        training_tokens=training_tokens,
        device=torch.device("cpu"),
        passes=PASSES,
        max_norm_multiple=max_norm_multiple,
        max_norms=None if max_norm is None else [max_norm],
        partners=partners,
    )

"""Text for evaluations: a table as the language model, whose tokens are characters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Layout
from fsae.evaluation.subject import Examined, Subject
from fsae.language_models.sites import Site, SiteName
from fsae.sources.layout import Sites
from fsae.sources.room import Room
from fsae.sources.source import HeldOutText

SITE = Site(name=SiteName.resid_post, layer=2)
D_IN = 6
BOS, SEPARATOR = 0, 1


class CharacterModel:
    """Activations that are a running mean of the characters' vectors: a position sees the ones before it."""

    name = "characters"
    context_limit = 64
    bos_token_id = BOS
    separator_id = SEPARATOR
    special_ids = frozenset({BOS, SEPARATOR})

    def __init__(self):
        self.table = torch.randn(256, D_IN, generator=torch.Generator().manual_seed(0))
        self.tokens_read = 0

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode("latin-1")) for text in texts]

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[(place, place + 1) for place in range(len(text))] for text in texts]

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        self.tokens_read += tokens.numel()
        steps = torch.arange(1, tokens.shape[1] + 1).unsqueeze(1)
        return {site: self.table[tokens].cumsum(1) / steps for site in sites}


@dataclass
class Text:
    """Held-out text as evaluations see it, as far as they need it."""

    folder: Path | None = None
    model: CharacterModel = field(default_factory=CharacterModel)
    site: Site = SITE
    prepends_bos: bool = True
    norm_limit: float | None = None
    origin: dict[str, Any] = field(default_factory=lambda: {"model": "characters", "dtype": "float32"})
    rows_at_once: int = 4

    @property
    def sites(self) -> Sites:
        return Sites((self.site,), (self.site,))

    @property
    def input_limits(self) -> list[float] | None:
        return None if self.norm_limit is None else [self.norm_limit]

    @property
    def input_layout(self) -> Layout:
        return Layout.of(self.model.table.shape[1])

    @property
    def kept_in(self) -> Room | None:
        return None if self.folder is None else Room(folder=self.folder, limit_gb=None)

    def model_at(self, site: Site) -> CharacterModel:
        return self.model

    @property
    def reopen_models(self) -> Callable[[], Callable[[Site], CharacterModel]]:
        return lambda: lambda site: CharacterModel()


class _TextSource:
    """A source that has nothing but its text."""

    unit = "tokens"

    def __init__(self, text: Text | HeldOutText):
        self.text = text


def subject_on(text: Text | HeldOutText, autoencoders: Sequence[Autoencoder]) -> Subject:
    """Return runs of one autoencoder each, on a source that has nothing but its text."""
    return Subject([Examined([each]) for each in autoencoders], cast(Any, _TextSource(text)))

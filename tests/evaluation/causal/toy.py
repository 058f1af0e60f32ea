"""A linear language model with two sites, and dictionaries whose latents are known."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.standard import StandardSettings
from fsae.evaluation.causal.passes import Function, Reader
from fsae.evaluation.causal.placed import Placed
from fsae.evaluation.causal.prompts import Contrasts
from fsae.evaluation.causal.tasks import Asked
from fsae.evaluation.subject import Examined, Subject
from fsae.language_models.sites import Site, SiteName
from fsae.sources.layout import Sites
from fsae.sources.room import Room

D, VOCABULARY = 4, 6
EARLY, LATE = (Site(name=SiteName.resid_post, layer=layer) for layer in (0, 1))
WORDS = ("one", "many", "near", "old", "sings", "sing")
# Tokens 0 and 1 are the singular and the plural, which differ most in the first dimension; 2 and 3 are other words.
EMBEDDING = torch.tensor(
    [[1, 0.5, 0.2, 0], [-1, 0.3, -0.2, 0.1], [0, 1, 0, 0.3], [0, -0.4, 1, 0.6], [0, 0, 0, 0], [0, 0, 0, 0]],
    dtype=torch.float64,
)
# Read from the mean over positions: the last token's first dimension becomes that of the first token.
BETWEEN = torch.tensor([[3, 0, 0.5, 0], [0, 0, 1, 0], [0, 0.2, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
# Token 4 is the answer to the singular and token 5 to the plural.
UNEMBEDDING = torch.zeros(D, VOCABULARY, dtype=torch.float64)
UNEMBEDDING[0, 4], UNEMBEDDING[0, 5] = 1, -1
UNEMBEDDING[1, 4] = 0.1


class LinearModel:
    """The late activations are the early ones, plus the mean over earlier positions times a matrix.

    Attributes:
        passes: forward passes so far.
    """

    name = "linear"
    device = torch.device("cpu")
    bos_token_id = None

    def __init__(self) -> None:
        self.passes, self.checked = 0, list[Site]()

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """A word is a token; words that the model does not know are two."""
        ids = {word: [number] for number, word in enumerate(WORDS)}
        return [[each for word in text.split() for each in ids.get(word, [2, 3])] for text in texts]

    def strings(self, token_ids: Sequence[int]) -> list[str]:
        return [f" {WORDS[each]}" for each in token_ids]

    def width(self, site: Site) -> int:
        return D

    def check_splice(self, site: Site) -> None:
        self.checked.append(site)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        yield

    def _run(self, tokens: Tensor, replacements: Sequence[tuple[Site, Function]]) -> dict[Site | None, Tensor]:
        self.passes += 1
        functions, found = dict(replacements), dict[Site | None, Tensor]()
        x = EMBEDDING[tokens]
        x = functions.get(EARLY, lambda x: x)(x)
        found[EARLY] = x
        counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        y = x + (x.cumsum(1) / counts) @ BETWEEN
        y = functions.get(LATE, lambda y: y)(y)
        found[LATE] = y
        found[None] = y @ UNEMBEDDING
        return found

    @torch.no_grad()
    def logits(self, tokens: Tensor, *replacements: tuple[Site, Function], at: Tensor | None = None) -> Tensor:
        return self._at(self._run(tokens, replacements)[None], at)

    @torch.enable_grad()
    def differentiable_logits(
        self, tokens: Tensor, *replacements: tuple[Site, Function], at: Tensor | None = None
    ) -> Tensor:
        return self._at(self._run(tokens, replacements)[None], at)

    def _at(self, logits: Tensor, at: Tensor | None) -> Tensor:
        return logits if at is None else logits[torch.arange(len(logits)), at][:, None]

    @torch.no_grad()
    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        found = self._run(tokens, [])
        return {site: found[site] for site in sites}


def axes(d: int = D) -> Autoencoder:
    """A dictionary that reconstructs everything: latent i is the positive part of dimension i, d + i the negative."""
    autoencoder = StandardSettings(d_sae=2 * d).build(d, torch.Generator()).double().eval()
    rows = torch.cat([torch.eye(d), -torch.eye(d)]).double()
    with torch.no_grad():
        autoencoder.W_dec.copy_(rows)
        autoencoder.W_enc.copy_(rows.T)
    return autoencoder


def halved() -> Autoencoder:
    """The same with half of each code in its reconstruction, so that the error is the other half."""
    autoencoder = axes()
    with torch.no_grad():
        autoencoder.W_dec.mul_(0.5)
    return autoencoder


def placed(early: Autoencoder | None = None, late: Autoencoder | None = None) -> list[Placed]:
    return [Placed(EARLY, early or axes()), Placed(LATE, late or axes())]


def reader(rows_at_once: int = 3) -> Reader:
    return Reader(LinearModel(), rows_at_once)


def pairs(count: int = 8) -> Asked:
    """Clean prompts of a singular or a plural and two other words; the patch has the other number."""
    number = torch.arange(count) % 2
    rest = torch.stack([2 + (torch.arange(count) // 2) % 2, 2 + (torch.arange(count) // 4) % 2], dim=1)
    clean, patch = (torch.cat([first[:, None], rest], dim=1) for first in (number, 1 - number))
    answers = 4 + number, 5 - number
    return Asked(Contrasts(clean, *answers), Contrasts(patch, *answers), 0)


def rows_of(rows: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The first rows that have so many tokens together, and the mask of positions that count."""
    tokens, keep = rows
    some = slice(-(-count // tokens.shape[1]))
    return tokens[some], keep[some]


def subject(
    *runs: Examined,
    site: Site = LATE,
    model: Any = None,
    tokens: Tensor | None = None,
    keep: Tensor | None = None,
    kept_in: Room | None = None,
) -> Subject:
    """A subject whose language model is the linear one, with held-out rows of tokens."""
    tokens = pairs(64).clean.tokens if tokens is None else tokens
    text_rows = tokens, torch.ones_like(tokens, dtype=torch.bool) if keep is None else keep
    text = SimpleNamespace(model=model or LinearModel(), site=site, sites=Sites((site,), (site,)), rows_at_once=4,
        prepends_bos=False, origin={}, norm_limit=None, input_limits=None, kept_in=kept_in,
        held_out_rows=lambda count: rows_of(text_rows, count))  # fmt: skip
    return Subject(runs, cast(Any, SimpleNamespace(text=text)))

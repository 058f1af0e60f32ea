"""Contexts: the rows of text, or the single samples, in which a pass looks for latents."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.language_models.sites import Site
from fsae.latents.block import Places
from fsae.sources.massive import within
from fsae.sources.tokens import TextRows

if TYPE_CHECKING:
    from fsae.language_models.transformer_lens import TransformerLensModel

# Positions of a part. Sums are made part by part, so this number decides their last bits.
PART_POSITIONS = 2**18


class Read(NamedTuple):
    """The vectors of some contexts.

    Attributes:
        vectors: raw, of the positions that counted.
        places: where they are from.
        left_out: positions that text and settings allow, and whose vectors were left out for their norm.
    """

    vectors: Float[Tensor, "vectors d_in"]
    places: Places
    left_out: int


class Contexts(ABC):
    """Contexts in a fixed order, divided into parts that can be read independently.

    Attributes:
        count: contexts.
        length: positions of each.
    """

    count: int
    length: int

    @property
    def per_part(self) -> int:
        """Return the contexts of a part; the last part may have fewer."""
        return max(self.at_once, PART_POSITIONS // self.length // self.at_once * self.at_once)

    @property
    def parts(self) -> int:
        """Return the number of parts."""
        return -(-self.count // self.per_part)

    @property
    @abstractmethod
    def at_once(self) -> int:
        """Return the contexts that are read together."""

    @abstractmethod
    def read(self, begin: int, end: int) -> Read:
        """Return the vectors of the contexts from `begin` to `end`."""

    def blocks(self, part: int) -> Iterator[Read]:
        """Yield the vectors of a part, some contexts at a time."""
        last = min(self.count, (part + 1) * self.per_part)
        for begin in range(part * self.per_part, last, self.at_once):
            yield self.read(begin, min(begin + self.at_once, last))


class TextContexts(Contexts):
    """Rows of text, and the language model whose activations at one site are the vectors.

    Args:
        rows: the text.
        model: the language model.
        site: the site.
        at_once: rows per forward pass.
        norm_limit: vectors of a greater norm are left out, as in training; None for no limit.
    """

    def __init__(
        self, rows: TextRows, model: "TransformerLensModel", site: Site, at_once: int, norm_limit: float | None
    ):
        self.rows, self.model, self.site = rows, model, site
        self.norm_limit, self._at_once = norm_limit, at_once
        self.count, self.length = rows.tokens.shape

    @property
    def at_once(self) -> int:
        return self._at_once

    def read(self, begin: int, end: int) -> Read:
        """Return the vectors of some rows, from one forward pass.

        Raises:
            ValueError: activations are not finite.
        """
        tokens, keep = self.rows.tokens[begin:end], self.rows.keep[begin:end]
        everywhere = self.model.activations(tokens, [self.site])[self.site]
        keep = keep.to(everywhere.device)
        vectors = everywhere[keep]
        if not torch.isfinite(vectors).all():
            raise ValueError(
                f"activations at {self.site} are not finite in rows {begin} to {end - 1}; float16 overflows in many "
                "models, try model.dtype=bfloat16 or float32"
            )
        left_out = 0
        if self.norm_limit is not None:
            short = within(vectors, self.norm_limit)
            left_out = int((~short).sum())
            if left_out:
                keep[keep.clone()] = short
                vectors = vectors[short]
        numbers = torch.arange(begin, end, device=keep.device)
        return Read(vectors, Places(numbers, keep, self.rows.documents[begin:end].to(keep.device)), left_out)


class SampleContexts(Contexts):
    """Samples without text: every sample is a context of its own.

    Args:
        vectors: all samples.
        at_once: samples that are read together.
    """

    length = 1

    def __init__(self, vectors: Float[Tensor, "samples d_in"], at_once: int = 2048):
        self.vectors, self._at_once = vectors, at_once
        self.count = len(vectors)

    @property
    def at_once(self) -> int:
        return self._at_once

    def read(self, begin: int, end: int) -> Read:
        vectors = self.vectors[begin:end]
        numbers: Int[Tensor, " samples"] = torch.arange(begin, end, device=vectors.device)
        keep: Bool[Tensor, "samples 1"] = torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device)
        return Read(vectors, Places(numbers, keep, torch.zeros_like(keep, dtype=torch.long)), 0)

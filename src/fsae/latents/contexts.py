"""Contexts: the rows of text, or the single samples, in which a pass looks for latents."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.language_models.activations import activations_at
from fsae.language_models.sites import Site
from fsae.latents.block import Places
from fsae.sources.layout import Sites
from fsae.sources.massive import within_all
from fsae.sources.tokens import TextRows

if TYPE_CHECKING:
    from fsae.language_models.transformer_lens import TransformerLensModel

# Positions of a part: some minutes of work for a CPU.
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
        part_positions: positions of a part. Sums are made part by part, so this number decides their last bits.
        unit: name of the positions.
    """

    count: int
    length: int
    part_positions: int
    unit: str

    @property
    def per_part(self) -> int:
        """Return the contexts of a part; the last part may have fewer."""
        return max(self.at_once, self.part_positions // self.length // self.at_once * self.at_once)

    @property
    def parts(self) -> int:
        """Return the number of parts."""
        return -(-self.count // self.per_part)

    def positions_of(self, part: int) -> int:
        """Return the positions of a part."""
        return (min(self.count, (part + 1) * self.per_part) - part * self.per_part) * self.length

    @property
    @abstractmethod
    def at_once(self) -> int:
        """Return the contexts that are read together."""

    @abstractmethod
    def reopened(self) -> Callable[[], "Contexts"]:
        """Return a function that opens the same contexts in another process."""

    @abstractmethod
    def read(self, begin: int, end: int) -> Read:
        """Return the vectors of the contexts from `begin` to `end`."""

    def blocks(self, part: int) -> Iterator[Read]:
        """Yield the vectors of a part, some contexts at a time."""
        last = min(self.count, (part + 1) * self.per_part)
        for begin in range(part * self.per_part, last, self.at_once):
            yield self.read(begin, min(begin + self.at_once, last))


class TextContexts(Contexts):
    """Rows of text, and the language model whose activations, side by side, are the vectors.

    Args:
        rows: the text.
        model_at: returns the language model of a site; that of the first site has the text's tokens.
        sites: the sites of the vectors, and those of what dictionaries write.
        at_once: rows per forward pass.
        norm_limits: of each site that is read; positions with a vector of a greater norm are left out, as in training.
            None for no limits.
        reopen_models: returns `model_at` of language models that are opened again.
        part_positions: positions of a part.
    """

    unit = "tokens"

    def __init__(
        self,
        rows: TextRows,
        model_at: Callable[[Site], "TransformerLensModel"],
        sites: Sites,
        at_once: int,
        norm_limits: Sequence[float] | None,
        reopen_models: Callable[[], Callable[[Site], "TransformerLensModel"]],
        part_positions: int = PART_POSITIONS,
    ):
        self.part_positions = part_positions
        self.rows, self.sites, self.model_at, self._reopen_models = rows, sites, model_at, reopen_models
        self.model = model_at(sites.input[0])
        self.norm_limits, self._at_once = norm_limits, at_once
        self.count, self.length = rows.tokens.shape

    @property
    def at_once(self) -> int:
        return self._at_once

    @property
    def first_position(self) -> int:
        """Return the first position that counts in any row."""
        return int(self.rows.keep.any(0).nonzero()[0])

    @property
    def opening(self) -> list[int]:
        """Return the tokens that begin every row and never count, such as a BOS and a prefix."""
        same = (self.rows.tokens == self.rows.tokens[:1]).all(0) & ~self.rows.keep.any(0)
        return self.rows.tokens[0, : int(same.long().cumprod(0).sum())].tolist()

    def reopened(self) -> Callable[[], Contexts]:
        read = self.sites, self._at_once, self.norm_limits
        return partial(_text_contexts, self.rows, self._reopen_models, *read, self.part_positions)

    def activations(
        self, tokens: Int[Tensor, "row context"], sites: Sequence[Site]
    ) -> dict[Site, Float[Tensor, "row context d"]]:
        """Return the activations at each site, from one forward pass of each model."""
        return activations_at(self.model_at, tokens, sites)

    def into_stream(self, site: Site) -> Float[Tensor, "d d_model"] | None:
        """Return the matrix by which a vector at a site is added to the stream of `model`; None if no matrix does this.

        The matrix of a site of another model is zero.
        """
        matrix, model = self.model.into_stream(site.within), self.model_at(site)
        if matrix is None or model is self.model:
            return matrix
        return matrix.new_zeros(model.width(site.within), matrix.shape[1])

    def read(self, begin: int, end: int) -> Read:
        """Return the vectors of some rows, from one forward pass of each model.

        Raises:
            ValueError: activations are not finite.
        """
        # A copy: what is left out for its norm is left out of this read.
        tokens, keep = self.rows.tokens[begin:end], self.rows.keep[begin:end].clone()
        everywhere = self.activations(tokens, self.sites.input)
        keep = keep.to(everywhere[self.sites.input[0]].device)
        parts = [everywhere[site][keep] for site in self.sites.input]
        for site, part in zip(self.sites.input, parts, strict=True):
            if not torch.isfinite(part).all():
                raise ValueError(
                    f"activations at {site} are not finite in rows {begin} to {end - 1}; float16 overflows in many "
                    "models, try model.dtype=bfloat16 or float32"
                )
        vectors, left_out = torch.cat(parts, dim=1), 0
        if self.norm_limits is not None:
            short = within_all(parts, self.norm_limits)
            left_out = int((~short).sum())
            if left_out:
                keep[keep.clone()] = short
                vectors = vectors[short]
        numbers = torch.arange(begin, end, device=keep.device)
        return Read(vectors, Places(numbers, keep, self.rows.documents[begin:end].to(keep.device)), left_out)


def _text_contexts(
    rows: TextRows,
    reopen_models: Callable[[], Callable[[Site], "TransformerLensModel"]],
    sites: Sites,
    at_once: int,
    norm_limits: Sequence[float] | None,
    part_positions: int,
) -> TextContexts:
    return TextContexts(rows, reopen_models(), sites, at_once, norm_limits, reopen_models, part_positions)


class SampleContexts(Contexts):
    """Samples without text: every sample is a context of its own.

    Args:
        vectors: all samples.
        at_once: samples that are read together.
        part_positions: samples of a part.
    """

    length = 1
    unit = "samples"

    def __init__(
        self, vectors: Float[Tensor, "samples d_in"], at_once: int = 2048, part_positions: int = PART_POSITIONS
    ):
        self.part_positions = part_positions
        self.vectors, self._at_once = vectors, at_once
        self.count = len(vectors)

    @property
    def at_once(self) -> int:
        return self._at_once

    def reopened(self) -> Callable[[], Contexts]:
        return partial(SampleContexts, self.vectors, self._at_once, self.part_positions)

    def read(self, begin: int, end: int) -> Read:
        vectors = self.vectors[begin:end]
        numbers: Int[Tensor, " samples"] = torch.arange(begin, end, device=vectors.device)
        keep: Bool[Tensor, "samples 1"] = torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device)
        return Read(vectors, Places(numbers, keep, torch.zeros_like(keep, dtype=torch.long)), 0)

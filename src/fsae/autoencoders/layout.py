"""Layouts: the named parts of a vector, and the two ends of a dictionary, its input and its target."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

# A factor of a vector's dimensions: one for all, or a row of one for each.
Factor = float | Float[Tensor, " d"]


class PartNorm(Enum):
    """The norm of a decoder row that has several parts, which weighs its code in a sparsity term.

    `sum` adds the norms of the parts (Lindsey et al. 2024), so that a latent pays for every part that it writes;
    `joint` is the norm of the whole row, as in an autoencoder of the joined vectors.
    """

    sum = "sum"
    joint = "joint"


@dataclass(frozen=True)
class Layout:
    """The parts of a vector, side by side.

    Attributes:
        parts: name and width of each; the name of a site, or "" for vectors of another origin.
    """

    parts: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, width: int, name: str = "") -> Self:
        """Return the layout of vectors of one part."""
        return cls(((name, width),))

    @property
    def width(self) -> int:
        """The number of dimensions."""
        return sum(self.widths)

    @property
    def widths(self) -> list[int]:
        """The number of dimensions of each part."""
        return [width for _, width in self.parts]

    @property
    def names(self) -> list[str]:
        """The names of the parts."""
        return [name for name, _ in self.parts]

    def split(self, vectors: Float[Tensor, "*batch d"]) -> tuple[Tensor, ...]:
        """Return views of the parts of vectors."""
        return vectors.split(self.widths, dim=-1)

    def spread(self, factors: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32) -> Factor:
        """Return one factor per part as a factor of the whole vectors."""
        assert len(factors) == len(self.parts)
        if len(factors) == 1:
            return factors[0]
        rows = [torch.full((width,), each, dtype=dtype) for width, each in zip(self.widths, factors, strict=True)]
        return torch.cat(rows).to(device)


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The two ends of a dictionary: what it reads and what it should write.

    Attributes:
        input: of the vectors that are encoded.
        target: of the vectors that are reconstructed; equal to `input` for an autoencoder and a crosscoder.
        skip: whether a linear path from the input is added to the reconstruction.
        skip_rank: the rank of that path; None for any.
        part_norm: the norm of decoder rows if the target has several parts.
    """

    input: Layout
    target: Layout
    skip: bool = False
    skip_rank: int | None = None
    part_norm: PartNorm = PartNorm.sum

    @classmethod
    def of(cls, widths: "Ends | int") -> "Ends":
        """Return the ends; a number is the width of an autoencoder's vectors."""
        if isinstance(widths, Ends):
            return widths
        return cls(input=Layout.of(widths), target=Layout.of(widths))

    @property
    def same(self) -> bool:
        """True if the target has the input's layout, as for an autoencoder and a crosscoder."""
        return self.input == self.target

    @property
    def plain(self) -> bool:
        """True if there is one part, the same at both ends: an autoencoder."""
        return self.same and len(self.input.parts) == 1 and not self.skip


@dataclass(frozen=True)
class Scaling:
    """The factors by which training multiplies raw vectors, one for each part.

    Attributes:
        input: of the parts of the input.
        target: of the parts of the target.
    """

    input: tuple[float, ...]
    target: tuple[float, ...]

    @classmethod
    def of(cls, factor: float | Self, ends: Ends | None = None) -> Self:
        """Return one factor for every part of these ends, by default of an autoencoder; factors of parts stay."""
        if isinstance(factor, cls):
            return factor
        assert isinstance(factor, int | float)
        parts = (1, 1) if ends is None else (len(ends.input.parts), len(ends.target.parts))
        return cls((factor,) * parts[0], (factor,) * parts[1])

    @classmethod
    def from_state(cls, state: Any) -> Self:
        """Return the scaling of a checkpoint, which has a number if all factors are one."""
        if isinstance(state, float):
            return cls((state,), (state,))
        return cls(tuple(state["input"]), tuple(state["target"]))

    def state(self) -> Any:
        """Return the scaling as a checkpoint holds it."""
        if len(self.input) == 1 and self.input == self.target:
            return self.input[0]
        return {"input": list(self.input), "target": list(self.target)}

    def __str__(self) -> str:
        def shown(factors: Sequence[float]) -> str:
            return ", ".join(f"{factor:.4g}" for factor in factors)

        if self.input == self.target:
            return shown(self.input)
        return f"{shown(self.input)} (targets by {shown(self.target)})"

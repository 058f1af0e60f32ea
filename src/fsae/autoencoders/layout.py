"""Layouts: the named parts of a vector, and the two ends of a dictionary, its input and its target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fsae.sparse.regions import Region

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
        parts: name and width of each; the name of a site, or "" for vectors of another origin. Names differ.
    """

    parts: tuple[tuple[str, int], ...]

    def __post_init__(self):
        # Numbers of parts are stored by their names.
        assert len(set(self.names)) == len(self.parts), f"names of parts: {', '.join(self.names)}"

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

    @property
    def slices(self) -> list[slice]:
        """The dimensions of each part."""
        return [slice(*bounds) for bounds in pairwise(accumulate(self.widths, initial=0))]

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


@dataclass(frozen=True)
class Block:
    """Latents that lie side by side and read and write some of the parts only.

    Attributes:
        share: their share of all latents. Blocks of equal share have equally many.
        reads: numbers of the input's parts that they read, which lie side by side.
        writes: numbers of the target's parts that they write, which lie side by side.
    """

    share: float
    reads: tuple[int, ...]
    writes: tuple[int, ...]

    def __post_init__(self):
        for parts in (self.reads, self.writes):
            assert parts == tuple(range(parts[0], parts[-1] + 1))


def blocks_per_layer(layers: int) -> tuple[Block, ...]:
    """Return a block per part, whose latents read and write this part alone."""
    return tuple(Block(1 / layers, (layer,), (layer,)) for layer in range(layers))


def blocks_across_layers(layers: int) -> tuple[Block, ...]:
    """Return a block per part, whose latents read this part, and write it and all later ones."""
    return tuple(Block(1 / layers, (layer,), tuple(range(layer, layers))) for layer in range(layers))


def exclusive_blocks(parts: int, share: float) -> tuple[Block, ...]:
    """Return a block of this share per part, whose latents read and write it alone, and a block of all other latents,
    which read and write all parts."""
    own = tuple(Block(share, (part,), (part,)) for part in range(parts))
    every = tuple(range(parts))
    return (*own, Block(1 - parts * share, every, every))


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The two ends of a dictionary: what it reads and what it should write.

    Attributes:
        input: of the vectors that are encoded.
        target: of the vectors that are reconstructed; equal to `input` for an autoencoder and a crosscoder.
        skip: whether a linear path from the input is added to the reconstruction.
        skip_rank: the rank of that path; None for any.
        part_norm: the norm of decoder rows if the target has several parts.
        blocks: of latents that read and write some of the parts only, in the order of the latents; empty if every
            latent reads and writes all parts. With blocks the linear path leads from each part of the input to the part
            of the target with the same number.
    """

    input: Layout
    target: Layout
    skip: bool = False
    skip_rank: int | None = None
    part_norm: PartNorm = PartNorm.sum
    blocks: tuple[Block, ...] = ()

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

    @property
    def whole_shares(self) -> int:
        """The least number of which the share of every block is a whole number; 1 without blocks."""
        # A share such as 0.05 or 1 / 3 is no exact float.
        return math.lcm(*(Fraction(block.share).limit_denominator(1000).denominator for block in self.blocks))

    def latents(self, d_sae: int) -> list[slice]:
        """Return the latents of each block.

        Raises:
            ValueError: this number of latents cannot be divided into the blocks.
        """
        if not self.blocks:
            return []
        counts = [round(block.share * d_sae) for block in self.blocks[:-1]]
        counts.append(d_sae - sum(counts))
        sizes = {(block.share, count) for block, count in zip(self.blocks, counts, strict=True)}
        unequal = len(sizes) > len({share for share, _ in sizes})
        if min(counts) < 1 or unequal:
            shares = ", ".join(f"{block.share:.3g}" for block in self.blocks)
            least = math.ceil(1 / min(block.share for block in self.blocks))
            wanted = f"a multiple of {len(self.blocks)}" if unequal else f"at least {least}"
            raise ValueError(
                f"the dictionary has {d_sae} latents, which cannot be divided into blocks of the shares {shares}; set "
                f"arch.d_sae to {wanted}"
            )
        return [slice(*bounds) for bounds in pairwise(accumulate(counts, initial=0))]

    def read(self, d_sae: int) -> list[Region]:
        """Return the dimensions of the input that the latents of each block read; empty without blocks."""
        return self._reached(self.input, [block.reads for block in self.blocks], d_sae)

    def written(self, d_sae: int) -> list[Region]:
        """Return the dimensions of the target that the latents of each block write; empty without blocks."""
        return self._reached(self.target, [block.writes for block in self.blocks], d_sae)

    def unread(self, d_sae: int) -> list[Region]:
        """Return where W_enc.T is zero."""
        return self._missed(self.input, [block.reads for block in self.blocks], d_sae)

    def unwritten(self, d_sae: int) -> list[Region]:
        """Return where W_dec is zero."""
        return self._missed(self.target, [block.writes for block in self.blocks], d_sae)

    def may_write(self, d_sae: int) -> Bool[Tensor, "d_sae d_out"]:
        """Return where W_dec may have entries other than zero: everywhere without blocks."""
        mask = torch.ones(d_sae, self.target.width, dtype=torch.bool)
        for region in self.unwritten(d_sae):
            mask[region] = False
        return mask

    def unlinked(self) -> list[tuple[slice, slice]]:
        """Return where the matrix of the linear path, (d_out, d_in), is zero."""
        if not self.blocks:
            return []
        rows, columns = self.target.slices, self.input.slices
        return [(row, column) for i, row in enumerate(rows) for j, column in enumerate(columns) if i != j]

    def _reached(self, layout: Layout, parts: list[tuple[int, ...]], d_sae: int) -> list[Region]:
        reached = [slice(layout.slices[own[0]].start, layout.slices[own[-1]].stop) for own in parts]
        return [Region(*each) for each in zip(self.latents(d_sae), reached, strict=True)]

    def _missed(self, layout: Layout, parts: list[tuple[int, ...]], d_sae: int) -> list[Region]:
        return [
            Region(latents, dimensions)
            for latents, own in zip(self.latents(d_sae), parts, strict=True)
            for part, dimensions in enumerate(layout.slices)
            if part not in own
        ]


class End(Enum):
    """One end of a stream of inputs and targets, which a member of a pair reads and reconstructs."""

    input = "input"
    target = "target"


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

    def at(self, end: End | None) -> Self:
        """Return the factors of an autoencoder of one end; those of both ends for None."""
        if end is None:
            return self
        factors = self.input if end is End.input else self.target
        return type(self)(factors, factors)

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

"""A block: the codes of some contexts, as one list of entries sorted by latent."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern


@dataclass(frozen=True, eq=False)
class Places:
    """Places of a block's vectors: which positions of which contexts counted.

    Attributes:
        contexts: (rows,) number of each context in the whole data.
        keep: (rows, context) positions that counted, in reading order the block's vectors.
        documents: (rows, context) number of each position's document; windows end where it changes.
    """

    contexts: Int[Tensor, " rows"]
    keep: Bool[Tensor, "rows context"]
    documents: Int[Tensor, "rows context"]


@dataclass(frozen=True, eq=False)
class Block:
    """The codes that are not zero, sorted by latent, context and position.

    Attributes:
        places: where the vectors are from.
        latents, values: of each entry.
        vectors: the vector of each entry.
        rows: row of `places` of each entry.
        positions: position in its row of each entry.
    """

    places: Places
    latents: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    vectors: Int[Tensor, " entries"]
    rows: Int[Tensor, " entries"]
    positions: Int[Tensor, " entries"]

    @classmethod
    def of(cls, codes: Codes, places: Places) -> "Block":
        """Return the block of the codes of the kept positions, (vectors, d_sae)."""
        pattern = codes.pattern if codes.pattern is not None else Pattern.of_mask(codes.values != 0)
        values = codes.values if codes.pattern is not None else codes.values[codes.values != 0]
        order, transposed = pattern.transposed
        # A pattern's entries may be zero.
        values = values.index_select(0, order).float()
        on = values != 0
        vectors = transposed.columns[on]
        row, position = places.keep.nonzero(as_tuple=True)
        return cls(places, transposed.rows[on], values[on], vectors, row[vectors], position[vectors])

    def entries_of(self, latents: range) -> slice:
        """Return the entries of some latents."""
        first, end = torch.searchsorted(self.latents, self.latents.new_tensor([latents.start, latents.stop])).tolist()
        return slice(first, end)

    def where(self, entries: slice) -> "Block":
        """Return the block of some entries."""
        columns = (self.latents, self.values, self.vectors, self.rows, self.positions)
        return Block(self.places, *(each[entries] for each in columns))

    def segments(self) -> "Segments":
        """Return the entries of one latent in one context, for each such pair.

        The block does not keep them: they refer to it, and Python frees a cycle late.
        """
        key = self.latents * len(self.places.contexts) + self.rows
        begins = torch.cat([key.new_ones(1, dtype=torch.bool), key[1:] != key[:-1]]) if len(key) else key.bool()
        first = begins.nonzero().squeeze(1)
        lengths = torch.cat([first[1:], first.new_tensor([len(key)])]) - first if len(first) else first
        segment = torch.arange(len(first), device=key.device).repeat_interleave(lengths, output_size=len(key))
        strength = self.values.abs()
        peak_strength = strength.new_zeros(len(first)).scatter_reduce_(0, segment, strength, "amax")
        entries = torch.arange(len(key), device=key.device)
        # Of equal peaks the first one.
        at_peak = torch.where(strength == peak_strength[segment], entries, len(key))
        peak = entries.new_full((len(first),), len(key)).scatter_reduce_(0, segment, at_peak, "amin")
        return Segments(self, first, lengths, peak)


class Segments:
    """The entries of one latent in one context, for each such pair.

    Attributes:
        first, lengths: the entries of each.
        peak: the entry of the largest absolute code.
        latents, contexts, rows, positions, values: of the peaks.
    """

    def __init__(self, block: Block, first: Tensor, lengths: Tensor, peak: Tensor):
        self.block, self.first, self.lengths, self.peak = block, first, lengths, peak
        self.latents, self.rows = block.latents[peak], block.rows[peak]
        self.positions, self.values = block.positions[peak], block.values[peak]
        self.contexts = block.places.contexts[self.rows]

    def windows(self, which: Int[Tensor, " some"], width: int) -> Float[Tensor, "some window"]:
        """Return the codes of each segment's latent from `width` positions before the peak to as many after it.

        Positions of other documents, and positions that did not count, are NaN.
        """
        block, places = self.block, self.block.places
        offsets = torch.arange(-width, width + 1, device=which.device)
        position = self.positions[which, None] + offsets
        inside = (position >= 0) & (position < places.keep.shape[1])
        flat = self.rows[which, None] * places.keep.shape[1] + position.clamp(0, places.keep.shape[1] - 1)
        documents = places.documents.flatten()
        own = documents[self.rows[which] * places.keep.shape[1] + self.positions[which]]
        counted = inside & places.keep.flatten()[flat] & (documents[flat] == own[:, None])
        windows = torch.where(counted, 0.0, torch.nan)
        lengths = self.lengths[which]
        total = int(lengths.sum())
        place = torch.arange(len(which), device=which.device).repeat_interleave(lengths, output_size=total)
        begins = lengths.cumsum(0) - lengths
        entry = torch.arange(total, device=which.device) - begins[place] + self.first[which][place]
        column = block.positions[entry] - self.positions[which][place] + width
        there = (column >= 0) & (column <= 2 * width)
        place, column, values = place[there], column[there], block.values[entry][there]
        there = counted[place, column]
        windows[place[there], column[there]] = values[there]
        return windows

"""Patterns: the entries of a batch of codes that may be non-zero, and the products that read only these.

After the encoder's product nothing has to touch batch x width again: the codes of a trained dictionary and all of their
gradients are sparse (about 64 of many thousand). A sparse batch is a `Pattern` and one value per entry. Three products
cover the forward and the backward pass, and the gradients of each consist of the other two:

    decode   (B, n) codes times (n, d) rows              -> (B, d)
    scatter  transposed (B, n) codes times (B, d) rows   -> (n, d)
    sample   (B, d) times (d, n), only at the pattern    -> one value per entry

Decode and scatter are sums over bags of rows; they and sample read only the rows they need.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.sparse.products import sample_rows, sum_rows


class Pattern:
    """The stored entries of a (batch, d_sae) matrix: compressed rows, like CSR without values.

    Args:
        columns: (entries,) latent of each entry, row after row.
        offsets: (batch + 1,) where each row's entries begin in `columns`; the last one is their number.
        width: d_sae.
        per_row: entries of every row, if all rows have as many; else None.
    """

    def __init__(
        self,
        columns: Int[Tensor, " entries"],
        offsets: Int[Tensor, " batch_plus_1"],
        width: int,
        per_row: int | None = None,
    ):
        self.columns = columns
        self.offsets = offsets
        self.width = width
        self.per_row = per_row
        self._divided: dict[tuple[int, ...], tuple[Tensor, list[tuple[slice, Pattern]]]] = {}

    @classmethod
    def of_mask(cls, mask: Bool[Tensor, "batch d_sae"]) -> "Pattern":
        """Return the pattern of the entries at which `mask` is true. Waits for the device, to read their number."""
        batch, width = mask.shape
        places = _true_places(mask.flatten())
        return cls.of_places(places // width, places % width, (batch, width))

    @classmethod
    def of_places(cls, rows: Int[Tensor, " entries"], columns: Int[Tensor, " entries"], shape: tuple[int, int]):
        """Return the pattern of single entries, given row after row, of a matrix of this shape."""
        batch, width = shape
        pattern = cls(columns, starts(rows, batch), width)
        pattern.__dict__["rows"] = rows
        return pattern

    @classmethod
    def above(
        cls,
        products: Float[Tensor, "batch d_sae"],
        limits: Float[Tensor, " d_sae"],
        size: Float[Tensor, " d_sae"] | None = None,
    ) -> "Pattern":
        """Return the pattern of the entries that exceed their latent's limit, or may exceed it in exact arithmetic.

        Args:
            products: may be rounded to bfloat16.
            limits: one per latent.
            size: the size of the two numbers whose difference each limit is; None if the limits are no differences.
        """
        return cls.of_mask(products > lowered(limits, products.dtype, size).to(products.dtype))

    @classmethod
    def stacked(cls, patterns: Sequence["Pattern"]) -> "Pattern":
        """Return the pattern with the rows of all patterns, one below the other."""
        if len(patterns) == 1:
            return patterns[0]
        before = [0, *accumulate(pattern.columns.shape[0] for pattern in patterns)]
        (per_row, *others) = {pattern.per_row for pattern in patterns}
        offsets = [pattern.offsets[:-1] + entries for pattern, entries in zip(patterns, before, strict=False)]
        end = patterns[0].offsets.new_full((1,), before[-1])
        columns = torch.cat([pattern.columns for pattern in patterns])
        return cls(columns, torch.cat([*offsets, end]), patterns[0].width, None if others else per_row)

    @classmethod
    def of_indices(cls, indices: Int[Tensor, "batch k"], width: int) -> "Pattern":
        """Return the pattern with k given entries in every row."""
        batch, k = indices.shape
        offsets = torch.arange(0, (batch + 1) * k, k, device=indices.device)
        return cls(indices.reshape(-1), offsets, width, per_row=k)

    @property
    def batch(self) -> int:
        return self.offsets.shape[0] - 1

    @cached_property
    def rows(self) -> Int[Tensor, " entries"]:
        """The row of each entry."""
        counts = self.offsets.diff()
        rows = torch.arange(self.batch, device=counts.device)
        return rows.repeat_interleave(counts, output_size=self.columns.shape[0])

    @cached_property
    def transposed(self) -> tuple[Int[Tensor, " entries"], "Pattern"]:
        """The order that sorts the entries by column, and their (d_sae, batch) pattern in that order."""
        # Sorting 32-bit numbers takes a third of the time, and index_select a quarter of the time of indexing.
        columns, order = torch.sort(self.columns.int(), stable=True)
        return order, Pattern.of_places(columns.long(), self.rows.index_select(0, order), (self.width, self.batch))

    def by_blocks(self, ends: Sequence[int]) -> tuple[Int[Tensor, " kept"], "Pattern"]:
        """Return entries in the order of blocks of columns, and their pattern, in which each block has rows of its own.

        Row block * batch + row of this pattern has the entries of the row in the block. On a GPU one more block has the
        columns from the last end on, because leaving them out would wait for the device.

        Args:
            ends: the column at which each block ends and the next one begins.
        """
        columns, rows = self.columns, self.rows
        blocks = torch.bucketize(columns, torch.tensor(ends).to(columns.device, non_blocking=True), right=True)
        count, kept = len(ends), None
        if columns.is_cuda:
            count += 1
        else:
            kept = _true_places(blocks < count)
            blocks = blocks.index_select(0, kept)
        blocks, order = torch.sort(blocks.int(), stable=True)
        order = order if kept is None else kept.index_select(0, order)
        rows = blocks.long() * self.batch + rows.index_select(0, order)
        return order, Pattern.of_places(rows, columns.index_select(0, order), (count * self.batch, self.width))

    def divided(self, ends: tuple[int, ...]) -> tuple[Int[Tensor, " entries"], list[tuple[slice, "Pattern"]]]:
        """Return entries in the order of blocks of columns, and each block's entries in this order with their pattern.

        It is computed once: the passes of a step ask several times. On a GPU it waits for the device.

        Args:
            ends: the column at which each block ends and the next one begins; the last one is the width.
        """
        if ends not in self._divided:
            order, stacked = self.by_blocks(ends)
            blocks = []
            # On a GPU one more block is empty: that of the columns from the last end on.
            for number, entries in enumerate([*stacked.slices(self.batch)][: len(ends)]):
                offsets = stacked.offsets[number * self.batch : (number + 1) * self.batch + 1] - entries.start
                begin = ends[number - 1] if number else 0
                blocks.append((entries, Pattern(stacked.columns[entries] - begin, offsets, ends[number] - begin)))
            self._divided[ends] = order, blocks
        return self._divided[ends]

    def padded(self, values: Float[Tensor, " entries"]) -> Float[Tensor, "batch most"]:
        """Return the values of each row side by side, and zeros behind them. Waits for the device, to read the most
        entries of a row."""
        most = max(1, int(self.offsets.diff().max())) if self.batch else 1
        places = torch.arange(len(values), device=values.device) - self.offsets[:-1].index_select(0, self.rows)
        flat = values.new_zeros(self.batch * most)
        return flat.index_copy(0, self.rows * most + places, values).view(self.batch, most)

    def decode(self, values: Float[Tensor, " entries"], W: Float[Tensor, "d_sae d"]) -> Float[Tensor, "batch d"]:
        """Return the product of the matrix with these values and W, without gradients."""
        return sum_rows(W, self.columns, self.offsets, values)

    def scatter(self, values: Float[Tensor, " entries"], X: Float[Tensor, "batch d"]) -> Float[Tensor, "d_sae d"]:
        """Return the product of the transposed matrix with these values and X, without gradients."""
        order, transposed = self.transposed
        return transposed.decode(values.index_select(0, order), X)

    def sample(self, X: Float[Tensor, "batch d"], W: Float[Tensor, "d_sae d"]) -> Float[Tensor, " entries"]:
        """Return X @ W.T at each entry, without gradients."""
        if W.shape[0] <= X.shape[0]:
            return sample_rows(X, W, self.rows, self.columns, self.offsets)
        # The larger matrix is read once and in order. The smaller one is read repeatedly: more of it fits into a cache.
        order, transposed = self.transposed
        sampled = sample_rows(W, X, transposed.rows, transposed.columns, transposed.offsets)
        return torch.empty_like(sampled).scatter_(0, order, sampled)

    def slices(self, count: int) -> Iterator[slice]:
        """Yield the entries of the first `count` samples, then of the next `count`, and so on."""
        firsts = range(0, max(1, self.batch), count)
        if len(firsts) == 1:
            begins = [0]
        elif self.per_row is not None:
            begins = [first * self.per_row for first in firsts]
        else:
            # Only this case waits for the device.
            begins = self.offsets[:-1][::count].tolist()
        for begin, end in zip(begins, [*begins[1:], self.columns.shape[0]], strict=True):
            yield slice(begin, end)


def lowered(limits: Tensor, dtype: torch.dtype, size: Tensor | None = None) -> Tensor:
    """Return limits so low that no value above its true limit falls below them by rounding to this type.

    The rounding error is in proportion to the numbers that are added up: `size`, or the size of the limits, but at
    least 1, which is the size of the products of scaled inputs with unit vectors. The margin is generous.
    """
    return limits - 4 * torch.finfo(dtype).eps * (limits.abs() if size is None else size).clamp_min(1)


def starts(sorted_ids: Tensor, count: int) -> Tensor:
    """Return the position at which each of the ids 0..count begins in a sorted list of ids."""
    return torch.searchsorted(sorted_ids, torch.arange(count + 1, device=sorted_ids.device))


def _true_places(mask: Bool[Tensor, " entries"]) -> Int[Tensor, " true"]:
    """Return the positions at which a mask is true; reads eight entries at a time, as nearly all are false."""
    if mask.numel() % 8 or mask.storage_offset() % 8:
        return mask.nonzero().squeeze(1)
    eights = mask.view(torch.int64).nonzero().squeeze(1)
    which, place = mask.view(-1, 8)[eights].nonzero(as_tuple=True)
    return 8 * eights[which] + place

"""The products of `products.py` as Triton kernels, for GPUs.

Both read tiles of several rows at once, so that a program waits once for many rows and a long bag (a latent that is on
in half of the batch) takes few turns. Sums are in float32 at least.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Entries and dimensions of a tile: together 16 KB of float32 for each table read.
_ENTRIES = tl.constexpr(32)
_DIMENSIONS = tl.constexpr(128)


def sum_rows(table: Tensor, ids: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Return (bags, d) weighted sums of the rows of table (n, d) that each bag lists; see `products.sum_rows`."""
    bags, d = starts.shape[0] - 1, table.shape[1]
    sums = table.new_empty(bags, d)
    if bags > 0:
        grid = (bags, triton.cdiv(d, _DIMENSIONS.value))
        _sum_rows_kernel[grid](table, ids, starts, weights, sums, d, _wide(table))
    return sums


def sample_rows(X: Tensor, W: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return (entries,) inner products X[row] . W[column]; see `products.sample_rows`."""
    entries, d = columns.shape[0], X.shape[1]
    values = X.new_empty(entries)
    if entries > 0:
        grid = (triton.cdiv(entries, _ENTRIES.value),)
        _sample_rows_kernel[grid](X, W, rows, columns, values, entries, d, _wide(X))
    return values


def _wide(tensor: Tensor) -> tl.constexpr:
    return tl.constexpr(tl.float64 if tensor.dtype is torch.float64 else tl.float32)


@triton.jit
def _sum_rows_kernel(table, ids, starts, weights, sums, d, wide: tl.constexpr):
    bag = tl.program_id(0)
    dimensions = tl.program_id(1) * _DIMENSIONS + tl.arange(0, _DIMENSIONS)
    begin, end = tl.load(starts + bag), tl.load(starts + bag + 1)
    total = tl.zeros((_DIMENSIONS,), dtype=wide)
    for first in range(begin, end, _ENTRIES):
        entries = first + tl.arange(0, _ENTRIES)
        there = entries < end
        names = tl.load(ids + entries, mask=there, other=0).to(tl.int64)
        factors = tl.load(weights + entries, mask=there, other=0.0).to(wide)
        tile = tl.load(
            table + names[:, None] * d + dimensions[None, :], mask=there[:, None] & (dimensions < d)[None, :], other=0.0
        )
        total += tl.sum(tile.to(wide) * factors[:, None], axis=0)
    tl.store(sums + bag.to(tl.int64) * d + dimensions, total.to(sums.dtype.element_ty), mask=dimensions < d)


@triton.jit
def _sample_rows_kernel(X, W, rows, columns, values, count, d, wide: tl.constexpr):
    entries = tl.program_id(0).to(tl.int64) * _ENTRIES + tl.arange(0, _ENTRIES)
    there = entries < count
    row = tl.load(rows + entries, mask=there, other=0).to(tl.int64)
    column = tl.load(columns + entries, mask=there, other=0).to(tl.int64)
    total = tl.zeros((_ENTRIES,), dtype=wide)
    for first in range(0, d, _DIMENSIONS):
        dimensions = first + tl.arange(0, _DIMENSIONS)
        mask = there[:, None] & (dimensions < d)[None, :]
        x = tl.load(X + row[:, None] * d + dimensions[None, :], mask=mask, other=0.0).to(wide)
        w = tl.load(W + column[:, None] * d + dimensions[None, :], mask=mask, other=0.0).to(wide)
        total += tl.sum(x * w, axis=1)
    tl.store(values + entries, total.to(values.dtype.element_ty), mask=there)

"""Gram matrices of codes: the squared norm of codes @ codes.T, and sums of codes.T @ codes."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern, starts
from fsae.sparse.products import add_sparse_product, compressed, first_order, has_sparse_product

# Slices of latents by which their Gram matrix is computed. With more slices, fewer entries below the diagonal are
# computed in vain, and more time goes into finding the entries of each slice.
SLICES = 4
# Samples whose sparse codes are kept before their products are added: a pass over a d_sae x d_sae matrix takes as long
# as the products of some thousand samples.
SAMPLES_AT_ONCE = 8192


def squared_gram_norm(codes: Codes, samples_at_once: int | None = None) -> Float[Tensor, ""]:
    """Return the sum of squares of codes @ codes.T, in float32 if the codes are in a shorter type.

    It equals the sum of squares of codes.T @ codes, so the smaller of the two is computed.

    Args:
        samples_at_once: samples per slice of the Gram matrix of sparse codes; None for the fastest number.
    """
    values = codes.values.to(torch.promote_types(codes.values.dtype, torch.float32))
    batch, width = codes.shape
    if codes.pattern is None:
        return _DenseNorm.apply(values)  # pyright: ignore[reportReturnType]
    pattern = codes.pattern
    if batch > width:
        order, pattern = pattern.transposed
        values = values.index_select(0, order)
    return _SparseNorm.apply(values, pattern, samples_at_once)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def add_gram(codes: Codes, total: Float[Tensor, "d_sae d_sae"], slices: int = SLICES) -> None:
    """Add codes.T @ codes to the upper triangle of `total`, in its type; the entries below become meaningless."""
    codes = codes.with_values(codes.values.to(total.dtype))
    if codes.pattern is None or not has_sparse_product(total):
        dense = codes.dense()
        total.addmm_(dense.T, dense)
        return
    for latents, left, right in _slices(codes.values, codes.pattern, slices):
        add_sparse_product(total[latents, latents.start :], left, right)


class GramSum:
    """The sum of z z' over samples, in float64; with sparse codes each sample costs the square of its active latents.

    Args:
        total: (d_sae, d_sae) zeros.
        samples_at_once: samples whose sparse codes are kept before their products are added.
    """

    def __init__(self, total: Float[Tensor, "d_sae d_sae"], samples_at_once: int = SAMPLES_AT_ONCE):
        self._total, self._samples_at_once = total, samples_at_once
        self._waiting: list[Codes] = []

    def add(self, codes: Codes) -> None:
        """Add samples, whose codes have no gradient."""
        if codes.pattern is None or not has_sparse_product(codes.values):
            add_gram(codes, self._total)
            return
        self._waiting.append(codes)
        if sum(each.shape[0] for each in self._waiting) >= self._samples_at_once:
            self._catch_up()

    @property
    def total(self) -> Float[Tensor, "d_sae d_sae"]:
        """The sum, in the upper triangle; the entries below are meaningless."""
        self._catch_up()
        return self._total

    def _catch_up(self) -> None:
        if self._waiting:
            codes, self._waiting = self._waiting, []
            pattern = Pattern.stacked([each.pattern for each in codes if each.pattern is not None])
            add_gram(Codes(torch.cat([each.values for each in codes]), pattern), self._total)

    def state_dict(self) -> dict[str, Any]:
        waiting = [
            {"values": each.values, "columns": each.pattern.columns, "offsets": each.pattern.offsets}
            for each in self._waiting
            if each.pattern is not None
        ]
        return {"total": self._total, "waiting": waiting}

    @classmethod
    def of_state(cls, state: dict[str, Any], device: torch.device, samples_at_once: int = SAMPLES_AT_ONCE) -> "GramSum":
        """Restore a sum from `state_dict`."""
        gram = cls(state["total"].to(device), samples_at_once)
        for each in state["waiting"]:
            values, columns, offsets = (each[name].to(device) for name in ("values", "columns", "offsets"))
            gram._waiting.append(Codes(values, Pattern(columns, offsets, len(gram._total))))
        return gram


class _DenseNorm(torch.autograd.Function):
    """The norm |A A'|^2 = |A' A|^2 by the smaller of the two; autograd would not use that it is symmetric."""

    @staticmethod
    def forward(ctx, A):
        tall = A.shape[0] > A.shape[1]
        gram = A.T @ A if tall else A @ A.T
        ctx.save_for_backward(A, gram)
        ctx.tall = tall
        return gram.square().sum()

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        A, gram = ctx.saved_tensors
        return 4 * grads[0] * (A @ gram if ctx.tall else gram @ A)


class _SparseNorm(torch.autograd.Function):
    """The norm |codes codes'|^2 of sparse rows, and its gradient, 4 (codes codes') codes at the codes.

    The Gram matrix is symmetric and never in memory as a whole. One slice of its columns at a time is computed and
    used, so small that it stays in a CPU's cache while every code reads it.
    """

    @staticmethod
    def forward(ctx, values, pattern, samples_at_once):
        norm = values.new_zeros((), dtype=torch.float64)
        gradient = torch.empty_like(values) if ctx.needs_input_grad[0] else None
        order, transposed = pattern.transposed
        ordered = values.index_select(0, order)
        count = samples_at_once or _samples_per_slice(pattern)
        places = pattern.columns * count + pattern.rows % count
        # (d_sae, count): the slice's samples as columns.
        table = values.new_zeros(pattern.width * count)
        for entries in pattern.slices(count):
            table[places[entries]] = values[entries]
            gram = pattern.decode(values, table.view(pattern.width, count))
            norm += gram.square().sum()
            if gradient is not None:
                gradient[entries] = transposed.decode(ordered, gram).flatten()[places[entries]]
            table[places[entries]] = 0.0
        ctx.save_for_backward(gradient)
        return norm.to(values.dtype)

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        (gradient,) = ctx.saved_tensors
        return 4 * grads[0] * gradient, None, None


def _samples_per_slice(pattern: Pattern) -> int:
    """Return how many columns of the Gram matrix a slice has.

    On a CPU its table has 2 MB, in whole registers of 16 numbers; with fewer than two registers a row is not worth its
    lookup (measured at widths 4,608 to 65,536). On a GPU it has a tile's width, for few launches.
    """
    if pattern.columns.is_cuda:
        count = max(128, 2**25 // pattern.width)
    else:
        count = max(32, 2**19 // pattern.width // 16 * 16)
    return max(1, min(pattern.batch, count))


def _slices(values: Tensor, pattern: Pattern, count: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield some latents, and two sparse matrices whose product has their inner products with these and all later
    latents."""
    order, transposed = pattern.transposed
    ordered, begins = values.index_select(0, order), transposed.offsets
    rows, columns = pattern.rows, pattern.columns
    size = math.ceil(pattern.width / count)
    for first in range(0, pattern.width, size):
        latents = slice(first, min(first + size, pattern.width))
        if first > 0:
            later = (columns >= first).nonzero().squeeze(1)
            rows, columns, values = (each.index_select(0, later) for each in (rows, columns, values))
        begin, end = begins[[latents.start, latents.stop]].tolist()
        offsets = begins[first : latents.stop + 1] - begin
        left = compressed(offsets, transposed.columns[begin:end], ordered[begin:end], pattern.batch)
        yield latents, left, compressed(starts(rows, pattern.batch), columns - first, values, pattern.width - first)

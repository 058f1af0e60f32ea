"""Codes of a batch, dense or sparse, and every product that is taken with them.

After the encoder's product nothing has to touch batch x width again: the codes of a trained dictionary and all of their
gradients are sparse (about 64 of many thousand). A sparse batch is a `Pattern` (which entries exist, in compressed
rows) and one value per entry. Three products cover the forward and the backward pass, and each one's gradients are
made of the other two:

    decode   (B, n) codes times (n, d) rows              -> (B, d)
    scatter  transposed (B, n) codes times (B, d) rows   -> (n, d)
    sample   (B, d) times (d, n), only at the pattern    -> one value per entry

On torch's own operators all three are sums over bags of rows (`embedding_bag`), which read only the rows they need.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# The most entries that a dense slice of (d_sae, batch) may have while the Gram matrix is taken: 8 MB, which fit a CPU's
# cache.
_SLICE_ENTRIES = 2**21


class Pattern:
    """Which entries of a (batch, d_sae) matrix exist: compressed rows, like CSR without values.

    Args:
        columns: (entries,) latent of each entry, row after row.
        offsets: (batch + 1,) where each row's entries begin in `columns`; the last one is their number.
        width: d_sae.
    """

    def __init__(self, columns: Int[Tensor, " entries"], offsets: Int[Tensor, " batch_plus_1"], width: int):
        self.columns = columns
        self.offsets = offsets
        self.width = width

    @classmethod
    def of_mask(cls, mask: Bool[Tensor, "batch d_sae"]) -> "Pattern":
        """The entries where `mask` is true. Their number is read from the device, so this waits for it."""
        rows, columns = mask.nonzero(as_tuple=True)
        return cls.of_places(rows, columns, (mask.shape[0], mask.shape[1]))

    @classmethod
    def of_places(cls, rows: Int[Tensor, " entries"], columns: Int[Tensor, " entries"], shape: tuple[int, int]):
        """Entries given one by one, row after row, of a matrix of this shape."""
        batch, width = shape
        pattern = cls(columns, _starts(rows, batch), width)
        pattern.__dict__["rows"] = rows
        return pattern

    @classmethod
    def above(
        cls,
        products: Float[Tensor, "batch d_sae"],
        limits: Float[Tensor, " d_sae"],
        size: Float[Tensor, " d_sae"] | None = None,
    ) -> "Pattern":
        """The entries that exceed their latent's limit, and those that may once they are computed exactly.

        Args:
            products: may be rounded to bfloat16.
            limits: of each latent.
            size: of the numbers that each limit is the difference of; its own where it is none.
        """
        return cls.of_mask(products > lowered(limits, products.dtype, size).to(products.dtype))

    @classmethod
    def of_indices(cls, indices: Int[Tensor, "batch k"], width: int) -> "Pattern":
        """The same number k of entries in every row."""
        batch, k = indices.shape
        offsets = torch.arange(0, (batch + 1) * k, k, device=indices.device)
        return cls(indices.reshape(-1), offsets, width)

    @property
    def batch(self) -> int:
        return self.offsets.shape[0] - 1

    @cached_property
    def rows(self) -> Int[Tensor, " entries"]:
        """Row of each entry."""
        counts = self.offsets.diff()
        rows = torch.arange(self.batch, device=counts.device)
        return rows.repeat_interleave(counts, output_size=self.columns.shape[0])

    @cached_property
    def by_column(self) -> tuple[Int[Tensor, " entries"], Int[Tensor, " entries"], Int[Tensor, " width_plus_1"]]:
        """The transposed pattern: the entries' order, their rows in it, and where each column's entries begin."""
        columns, order = torch.sort(self.columns, stable=True)
        return order, self.rows[order], _starts(columns, self.width)


def lowered(limits: Tensor, dtype: torch.dtype, size: Tensor | None = None) -> Tensor:
    """Limits that let in all that rounding to this type may put on either side of the true ones, generously.

    Rounding is in proportion to the numbers that are added up: `size`, or the limits' own.
    """
    return limits - 4 * torch.finfo(dtype).eps * (limits.abs() if size is None else size)


def _starts(sorted_ids: Tensor, count: int) -> Tensor:
    """Where each of the ids 0..count begins in a sorted list of ids."""
    return torch.searchsorted(sorted_ids, torch.arange(count + 1, device=sorted_ids.device))


def _sum_rows(table: Tensor, ids: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """For each bag: the sum of `table`'s rows named by `ids`, each times its weight."""
    return F.embedding_bag(
        ids, table.contiguous(), starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def _decode(values: Tensor, pattern: Pattern, W: Tensor) -> Tensor:
    return _sum_rows(W, pattern.columns, pattern.offsets, values)


def _scatter(values: Tensor, pattern: Pattern, X: Tensor) -> Tensor:
    order, rows, starts = pattern.by_column
    return _sum_rows(X, rows, starts, values[order])


def _sample(X: Tensor, W: Tensor, pattern: Pattern) -> Tensor:
    # The gradient of a weighted bag sum in its weights is exactly this product.
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        X.contiguous(), W.contiguous(), pattern.columns, pattern.offsets, pattern.rows, 0
    )


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, W, pattern):
        ctx.save_for_backward(values, W)
        ctx.pattern = pattern
        return _decode(values, pattern, W)

    @staticmethod
    def backward(ctx, *grads):
        values, W = ctx.saved_tensors
        needs_values, needs_W, _ = ctx.needs_input_grad
        grad_values = _sample(grads[0], W, ctx.pattern) if needs_values else None
        grad_W = _scatter(values, ctx.pattern, grads[0]) if needs_W else None
        return grad_values, grad_W, None


class _Sample(torch.autograd.Function):
    """X @ W.T at the pattern. `known` gives the values where a dense product was computed anyway."""

    @staticmethod
    def forward(ctx, X, W, pattern, known):
        ctx.save_for_backward(X, W)
        ctx.pattern = pattern
        return _sample(X, W, pattern) if known is None else known

    @staticmethod
    def backward(ctx, *grads):
        X, W = ctx.saved_tensors
        needs_X, needs_W, *_ = ctx.needs_input_grad
        grad_X = _decode(grads[0], ctx.pattern, W) if needs_X else None
        grad_W = _scatter(grads[0], ctx.pattern, X) if needs_W else None
        return grad_X, grad_W, None, None


class _SquaredGramNorm(torch.autograd.Function):
    """|codes codes'|^2 of sparse rows. Its gradient, 4 (codes codes') codes where codes are, is found on the way.

    The Gram matrix is symmetric and never there as a whole: a slice of its columns at a time is made and used up, so
    small that it stays in a CPU's cache while every code reads it.
    """

    @staticmethod
    def forward(ctx, values, pattern):
        needs_gradient = ctx.needs_input_grad[0]
        norm = values.new_zeros((), dtype=torch.float64)
        gradient = torch.empty_like(values) if needs_gradient else None
        order, rows, starts = pattern.by_column
        ordered = values[order]
        for begin, end, entries in _row_slices(pattern):
            count = end - begin
            places = pattern.columns[entries] * count + (pattern.rows[entries] - begin)
            transposed = values.new_zeros(pattern.width * count)
            transposed[places] = values[entries]
            gram = _sum_rows(transposed.view(pattern.width, count), pattern.columns, pattern.offsets, values)
            norm += gram.square().sum()
            if gradient is not None:
                gradient[entries] = _sum_rows(gram, rows, starts, ordered).view(-1)[places]
        ctx.save_for_backward(gradient)
        return norm.to(values.dtype)

    @staticmethod
    def backward(ctx, *grads):
        (gradient,) = ctx.saved_tensors
        return 4 * grads[0] * gradient, None


def _row_slices(pattern: Pattern) -> Iterator[tuple[int, int, slice]]:
    """Slices of rows and their entries, such that d_sae x rows stays within `_SLICE_ENTRIES`."""
    step = max(1, min(pattern.batch, _SLICE_ENTRIES // pattern.width))
    starts = pattern.offsets[:-1][::step].tolist() if step < pattern.batch else [0]
    ends = [*starts[1:], pattern.columns.shape[0]]
    for number, (first, last) in enumerate(zip(starts, ends, strict=True)):
        yield number * step, min((number + 1) * step, pattern.batch), slice(first, last)


@dataclass(frozen=True, eq=False)
class Codes:
    """A (batch, d_sae) matrix of codes.

    Dense: `values` is (batch, d_sae) and `pattern` is None. Sparse: `values` is (entries,), one per entry of the
    pattern; entries may be zero, and everything outside the pattern is.
    """

    values: Tensor
    pattern: Pattern | None = None

    @property
    def shape(self) -> tuple[int, int]:
        if self.pattern is None:
            return (self.values.shape[0], self.values.shape[1])
        return (self.pattern.batch, self.pattern.width)

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """The whole matrix; builds batch x d_sae, so not for a training step with sparse codes."""
        if self.pattern is None:
            return self.values
        flat = self.values.new_zeros(self.shape[0] * self.shape[1])
        places = self.pattern.rows * self.pattern.width + self.pattern.columns
        return flat.index_add(0, places, self.values).view(self.shape)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Codes":
        """Apply an elementwise function that keeps zero at zero."""
        return Codes(function(self.values), self.pattern)

    def with_values(self, values: Tensor) -> "Codes":
        """Other values in the same places."""
        return Codes(values, self.pattern)

    def columns(self, vector: Float[Tensor, " d_sae"]) -> Tensor:
        """A per-latent vector laid out like `values`, to be combined with them."""
        # index_select's backward adds in a fixed order, unlike advanced indexing's: runs repeat bit for bit.
        return vector if self.pattern is None else vector.index_select(0, self.pattern.columns)

    def column_sums(self) -> Float[Tensor, " d_sae"]:
        """Sum over the batch."""
        if self.pattern is None:
            return self.values.sum(0)
        return self.values.new_zeros(self.pattern.width).index_add(0, self.pattern.columns, self.values)

    def row_sums(self) -> Float[Tensor, " batch"]:
        """Sum over the latents."""
        if self.pattern is None:
            return self.values.sum(1)
        return self.values.new_zeros(self.pattern.batch).index_add(0, self.pattern.rows, self.values)

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        """codes @ W_dec."""
        if self.pattern is None:
            return self.values @ W_dec
        return _Decode.apply(self.values, W_dec, self.pattern)  # pyright: ignore[reportReturnType]

    def sample(self, X: Float[Tensor, "batch d_in"], W_dec: Float[Tensor, "d_sae d_in"]) -> "Codes":
        """X @ W_dec.T where these codes may be non-zero (everywhere, if dense)."""
        if self.pattern is None:
            return Codes(X @ W_dec.T)
        return Codes(_Sample.apply(X, W_dec, self.pattern, None), self.pattern)  # pyright: ignore[reportArgumentType]

    def squared_gram_norm(self) -> Float[Tensor, ""]:
        """The sum of squares of codes @ codes.T, in float32 where the codes are in less."""
        values = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        if self.pattern is None:
            return (values @ values.T).square().sum()
        return _SquaredGramNorm.apply(values, self.pattern)  # pyright: ignore[reportReturnType]


def linear_codes(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    select: Callable[[Float[Tensor, "batch d_sae"]], Pattern] | None = None,
) -> Codes:
    """x @ W_enc, dense or only where `select` wants it.

    Args:
        x: encoder inputs.
        W_enc: encoder weights; held transposed in memory they need no copy on the sparse path.
        select: sees the dense product (without gradient) and returns the pattern to keep; None keeps everything.
    """
    if select is None:
        return Codes(x @ W_enc)
    with torch.no_grad():
        products = x @ W_enc
        pattern = select(products)
        # Under autocast the product is in bfloat16 and only says where to look: the codes themselves are computed anew.
        exact = products.dtype == W_enc.dtype
        known = products.reshape(-1)[pattern.rows * pattern.width + pattern.columns] if exact else None
    return Codes(_Sample.apply(x, W_enc.T, pattern, known), pattern)  # pyright: ignore[reportArgumentType]

"""Codes of a batch, dense or sparse, and differentiable products with them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.sparse.pattern import Pattern
from fsae.sparse.products import add_sparse_product, compressed, first_order, has_sparse_product

# The most entries of vectors per sparse product that is added to a sum: 5 MB, read again for every active latent. With
# fewer, more time goes into passes over the sum; with four times as many, everything takes twice as long.
VECTOR_ENTRIES = 600_000


@dataclass(frozen=True, eq=False)
class Codes:
    """A (batch, d_sae) matrix of codes.

    Dense: `values` is (batch, d_sae) and `pattern` is None. Sparse: `values` is (entries,), one per entry of the
    pattern; entries may be zero, and all codes outside the pattern are zero.
    """

    values: Tensor
    pattern: Pattern | None = None

    @property
    def shape(self) -> tuple[int, int]:
        if self.pattern is None:
            return (self.values.shape[0], self.values.shape[1])
        return (self.pattern.batch, self.pattern.width)

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """Return the whole matrix, batch x d_sae; too large for a training step with sparse codes."""
        if self.pattern is None:
            return self.values
        flat = self.values.new_zeros(self.shape[0] * self.shape[1])
        places = self.pattern.rows * self.pattern.width + self.pattern.columns
        return flat.index_add(0, places, self.values).view(self.shape)

    def of_latents(self, latents: Int[Tensor, " latents"]) -> Float[Tensor, "batch latents"]:
        """Return the codes of some latents, each named once."""
        if self.pattern is None:
            return self.values[:, latents]
        place = latents.new_full((self.pattern.width,), -1)
        place[latents] = torch.arange(len(latents), device=latents.device)
        columns = place[self.pattern.columns]
        named = columns >= 0
        codes = self.values.new_zeros(self.pattern.batch, len(latents))
        codes[self.pattern.rows[named], columns[named]] = self.values[named]
        return codes

    def first(self, width: int) -> "Codes":
        """Return the codes of the first latents alone."""
        if self.pattern is None:
            return Codes(self.values[:, :width])
        columns, offsets = self.pattern.columns, self.pattern.offsets
        inside = columns < width
        if columns.is_cuda:
            # To leave entries out would wait for the device.
            pattern = Pattern(columns.clamp_max(width - 1), offsets, width, self.pattern.per_row)
            return Codes(self.values * inside, pattern)
        places = inside.nonzero().squeeze(1)
        before = torch.nn.functional.pad(inside.cumsum(0), (1, 0))
        return Codes(self.values.index_select(0, places), Pattern(columns[places], before[offsets], width))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Codes":
        """Apply an elementwise function that keeps zero at zero."""
        return Codes(function(self.values), self.pattern)

    def with_values(self, values: Tensor) -> "Codes":
        """Return codes with other values at the same entries."""
        return Codes(values, self.pattern)

    def columns(self, vector: Float[Tensor, " d_sae"]) -> Tensor:
        """Return a per-latent vector in the layout of `values`, to be combined with them."""
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

    @cached_property
    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """The number of samples of the batch in which each latent is on."""
        values = self.values.detach()
        if self.pattern is None:
            return values.count_nonzero(dim=0)
        on = (values != 0).long()
        return on.new_zeros(self.pattern.width).index_add(0, self.pattern.columns, on)

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        """Return codes @ W_dec."""
        if self.pattern is None:
            return self.values @ W_dec
        return _Decode.apply(self.values, W_dec, self.pattern)  # pyright: ignore[reportReturnType]

    def decode_blocks(
        self, W_dec: Float[Tensor, "d_sae d_in"], ends: Sequence[int]
    ) -> Float[Tensor, "blocks batch d_in"]:
        """Return codes @ W_dec of blocks of latents; all of them together cost as much as `decode`.

        Args:
            ends: the latent at which each block ends and the next one begins, so that latents from the last end on
                are in no block.
        """
        batch, width = self.shape
        if self.pattern is None:
            sizes = [end - begin for begin, end in zip([0, *ends], [*ends, width], strict=True)]
            blocks = zip(self.values.split(sizes, dim=1), W_dec.split(sizes), strict=True)
            return torch.stack([codes @ rows for codes, rows in blocks][: len(ends)])
        order, pattern = self.pattern.by_blocks(ends)
        codes = Codes(self.values.index_select(0, order), pattern)
        return codes.decode(W_dec).view(-1, batch, W_dec.shape[1])[: len(ends)]

    def blocks(self, ends: tuple[int, ...]) -> list[tuple[Any, "Codes"]]:
        """Return the codes of each block of latents, and the place of its values among all values.

        On a GPU it waits for the device if codes are sparse.

        Args:
            ends: the latent at which each block ends and the next one begins; the last one is d_sae.
        """
        if self.pattern is None:
            begins = [0, *ends[:-1]]
            # Split, and not sliced: the gradient of each slice would be as large as all values.
            parts = self.values.split([end - begin for begin, end in zip(begins, ends, strict=True)], dim=1)
            latents = [(slice(None), slice(begin, end)) for begin, end in zip(begins, ends, strict=True)]
            return list(zip(latents, map(Codes, parts), strict=True))
        order, blocks = self.pattern.divided(ends)
        values = self.values.index_select(0, order).split([entries.stop - entries.start for entries, _ in blocks])
        return [(order[entries], Codes(own, pattern)) for (entries, pattern), own in zip(blocks, values, strict=True)]

    def sample(self, X: Float[Tensor, "batch d_in"], W_dec: Float[Tensor, "d_sae d_in"]) -> "Codes":
        """Return X @ W_dec.T at the entries at which these codes may be non-zero (at all entries, if dense)."""
        if self.pattern is None:
            return Codes(X @ W_dec.T)
        return Codes(_Sample.apply(X, W_dec, self.pattern), self.pattern)  # pyright: ignore[reportArgumentType]

    def transposed_product(self, X: Float[Tensor, "batch d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """Return codes.T @ X, without gradients."""
        return self.values.T @ X if self.pattern is None else self.pattern.scatter(self.values, X)

    @torch.no_grad()
    def add_transposed_product(
        self,
        total: Float[Tensor, "d_sae d_in"],
        X: Float[Tensor, "batch d_in"],
        vector_entries: int = VECTOR_ENTRIES,
    ) -> None:
        """Add codes.T @ X to `total`, in its type.

        Args:
            vector_entries: the most entries of X per sparse product.
        """
        codes, X = self.with_values(self.values.to(total.dtype)), X.to(total.dtype)
        if codes.pattern is None or not has_sparse_product(total):
            total.addmm_(codes.dense().T, X)
            return
        for some, vectors in codes._parts(X, vector_entries):
            assert some.pattern is not None
            order, transposed = some.pattern.transposed
            values = some.values.index_select(0, order)
            left = compressed(transposed.offsets, transposed.columns, values, transposed.width)
            add_sparse_product(total, left, vectors)

    def _parts(self, X: Float[Tensor, "batch d"], vector_entries: int) -> Iterator[tuple["Codes", Tensor]]:
        """Sparse codes of some samples, and these samples' vectors, which are few enough for a CPU's cache."""
        assert self.pattern is not None
        count = math.ceil(len(X) / math.ceil(max(1, X.numel()) / vector_entries)) or 1
        for number, entries in enumerate(self.pattern.slices(count)):
            samples = slice(number * count, (number + 1) * count)
            offsets = self.pattern.offsets[samples.start : samples.stop + 1] - entries.start
            pattern = Pattern(self.pattern.columns[entries], offsets, self.pattern.width)
            yield Codes(self.values[entries], pattern), X[samples]


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, W, pattern):
        ctx.save_for_backward(values, W)
        ctx.pattern = pattern
        return pattern.decode(values, W)

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        values, W = ctx.saved_tensors
        needs_values, needs_W, _ = ctx.needs_input_grad
        grad_values = ctx.pattern.sample(grads[0], W) if needs_values else None
        grad_W = ctx.pattern.scatter(values, grads[0]) if needs_W else None
        return grad_values, grad_W, None


class _Sample(torch.autograd.Function):
    """X @ W.T at the pattern."""

    @staticmethod
    def forward(ctx, X, W, pattern):
        ctx.save_for_backward(X, W)
        ctx.pattern = pattern
        return pattern.sample(X, W)

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        X, W = ctx.saved_tensors
        needs_X, needs_W, _ = ctx.needs_input_grad
        grad_X = ctx.pattern.decode(grads[0], W) if needs_X else None
        grad_W = ctx.pattern.scatter(grads[0], X) if needs_W else None
        return grad_X, grad_W, None

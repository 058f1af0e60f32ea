"""Codes of a batch, dense or sparse, and every product that is taken with them.

After the encoder's product nothing has to touch batch x width again: the codes of a trained dictionary and all of their
gradients are sparse (about 64 of many thousand). A sparse batch is a `Pattern` (which entries exist, in compressed
rows) and one value per entry. Three products cover the forward and the backward pass, and each one's gradients are
made of the other two:

    decode   (B, n) codes times (n, d) rows              -> (B, d)
    scatter  transposed (B, n) codes times (B, d) rows   -> (n, d)
    sample   (B, d) times (d, n), only at the pattern    -> one value per entry

Decode and scatter are sums over bags of rows; they and sample read only the rows they need.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fsae.autoencoders.products import add_sparse_product, compressed, has_sparse_product, sample_rows, sum_rows

# The most entries of the encoder's product that are there at a time: of fewer rows it is slower, of more no faster.
_PRODUCT_ENTRIES = 2**24

# Slices of the latents by which the Gram matrix over them is found: of more, less is found in vain below its diagonal,
# and more is spent on finding each one's entries.
_GRAM_SLICES = 4

# The most entries of vectors that products with codes are added of at a time: 5 MB, read again for every active latent.
# Of fewer samples, more is spent on going through the sum; of four times as many, all takes twice as long.
_VECTOR_ENTRIES = 600_000


class Pattern:
    """Which entries of a (batch, d_sae) matrix exist: compressed rows, like CSR without values.

    Args:
        columns: (entries,) latent of each entry, row after row.
        offsets: (batch + 1,) where each row's entries begin in `columns`; the last one is their number.
        width: d_sae.
        per_row: entries of every row, where all have as many.
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

    @classmethod
    def of_mask(cls, mask: Bool[Tensor, "batch d_sae"]) -> "Pattern":
        """The entries where `mask` is true. Their number is read from the device, so this waits for it."""
        batch, width = mask.shape
        places = _true_places(mask.flatten())
        return cls.of_places(places // width, places % width, (batch, width))

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
    def stacked(cls, patterns: Sequence["Pattern"]) -> "Pattern":
        """One pattern's rows under the other's."""
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
        """The same number k of entries in every row."""
        batch, k = indices.shape
        offsets = torch.arange(0, (batch + 1) * k, k, device=indices.device)
        return cls(indices.reshape(-1), offsets, width, per_row=k)

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
    def transposed(self) -> tuple[Int[Tensor, " entries"], "Pattern"]:
        """The order that sorts the entries by column, and the (d_sae, batch) pattern of them in that order."""
        # Numbers half as long are sorted in a third of the time; index_select takes a quarter of what indexing does.
        columns, order = torch.sort(self.columns.int(), stable=True)
        return order, Pattern.of_places(columns.long(), self.rows.index_select(0, order), (self.width, self.batch))


def lowered(limits: Tensor, dtype: torch.dtype, size: Tensor | None = None) -> Tensor:
    """Limits that let in all that rounding to this type may put on either side of the true ones, generously.

    Rounding is in proportion to the numbers that are added up: `size`, or the limits' own, but 1 at least, which is the
    size of the products of scaled inputs with unit vectors.
    """
    return limits - 4 * torch.finfo(dtype).eps * (limits.abs() if size is None else size).clamp_min(1)


def _true_places(mask: Bool[Tensor, " entries"]) -> Int[Tensor, " true"]:
    """Where a mask is true; looks at eight entries at a time, nearly all of which are false."""
    if mask.numel() % 8 or mask.storage_offset() % 8:
        return mask.nonzero().squeeze(1)
    eights = mask.view(torch.int64).nonzero().squeeze(1)
    which, place = mask.view(-1, 8)[eights].nonzero(as_tuple=True)
    return 8 * eights[which] + place


def _starts(sorted_ids: Tensor, count: int) -> Tensor:
    """Where each of the ids 0..count begins in a sorted list of ids."""
    return torch.searchsorted(sorted_ids, torch.arange(count + 1, device=sorted_ids.device))


def _decode(values: Tensor, pattern: Pattern, W: Tensor) -> Tensor:
    return sum_rows(W, pattern.columns, pattern.offsets, values)


def _scatter(values: Tensor, pattern: Pattern, X: Tensor) -> Tensor:
    order, transposed = pattern.transposed
    return _decode(values.index_select(0, order), transposed, X)


def _sample(X: Tensor, W: Tensor, pattern: Pattern) -> Tensor:
    if W.shape[0] <= X.shape[0]:
        return sample_rows(X, W, pattern.rows, pattern.columns, pattern.offsets)
    # The larger matrix is read once and in order, and the smaller one, which more of fits a cache, over and over.
    order, transposed = pattern.transposed
    sampled = sample_rows(W, X, transposed.rows, transposed.columns, transposed.offsets)
    return torch.empty_like(sampled).scatter_(0, order, sampled)


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that cannot be differentiated again, and says so where somebody tries."""
    # A function of its own for its type alone: type checkers take once_differentiable's result for another signature.
    return once_differentiable(backward)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, W, pattern):
        ctx.save_for_backward(values, W)
        ctx.pattern = pattern
        return _decode(values, pattern, W)

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        values, W = ctx.saved_tensors
        needs_values, needs_W, _ = ctx.needs_input_grad
        grad_values = _sample(grads[0], W, ctx.pattern) if needs_values else None
        grad_W = _scatter(values, ctx.pattern, grads[0]) if needs_W else None
        return grad_values, grad_W, None


class _Sample(torch.autograd.Function):
    """X @ W.T at the pattern."""

    @staticmethod
    def forward(ctx, X, W, pattern):
        ctx.save_for_backward(X, W)
        ctx.pattern = pattern
        return _sample(X, W, pattern)

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        X, W = ctx.saved_tensors
        needs_X, needs_W, _ = ctx.needs_input_grad
        grad_X = _decode(grads[0], ctx.pattern, W) if needs_X else None
        grad_W = _scatter(grads[0], ctx.pattern, X) if needs_W else None
        return grad_X, grad_W, None


class _Encode(torch.autograd.Function):
    """(x - centre) @ W.T, everywhere or at the pattern, of which `known` are the values.

    The centre's gradient is that of every sample's input, summed. Summing first, over the latents' gradients, spares
    the product with W of the whole batch, which data do not need.
    """

    @staticmethod
    def forward(ctx, x, centre, W, inputs, pattern, known):
        ctx.save_for_backward(inputs, W)
        ctx.pattern = pattern
        return known

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        inputs, W = ctx.saved_tensors
        codes = Codes(grads[0], ctx.pattern)
        needs_x, needs_centre, needs_W, *_ = ctx.needs_input_grad
        grad_x = codes.decode(W.to(grads[0].dtype)).to(inputs.dtype) if needs_x else None
        grad_centre = -(codes.column_sums().to(W.dtype) @ W) if needs_centre else None
        grad_W = codes.transposed_product(inputs.to(grads[0].dtype)).to(W.dtype) if needs_W else None
        return grad_x, grad_centre, grad_W, None, None, None


class _DenseSquaredGramNorm(torch.autograd.Function):
    """|A A'|^2 = |A' A|^2 through the smaller of the two; autograd would not know that it is symmetric."""

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


class _SquaredGramNorm(torch.autograd.Function):
    """|codes codes'|^2 of sparse rows. Its gradient, 4 (codes codes') codes where codes are, is found on the way.

    The Gram matrix is symmetric and never there as a whole: a slice of its columns at a time is made and used up, so
    small that it stays in a CPU's cache while every code reads it.
    """

    @staticmethod
    def forward(ctx, values, pattern):
        norm = values.new_zeros((), dtype=torch.float64)
        gradient = torch.empty_like(values) if ctx.needs_input_grad[0] else None
        order, transposed = pattern.transposed
        ordered = values.index_select(0, order)
        count = _samples_a_slice(pattern)
        places = pattern.columns * count + pattern.rows % count
        # (d_sae, count): the slice's samples as columns.
        table = values.new_zeros(pattern.width * count)
        for entries in _slices(pattern, count):
            table[places[entries]] = values[entries]
            gram = _decode(values, pattern, table.view(pattern.width, count))
            norm += gram.square().sum()
            if gradient is not None:
                gradient[entries] = _decode(ordered, transposed, gram).flatten()[places[entries]]
            table[places[entries]] = 0.0
        ctx.save_for_backward(gradient)
        return norm.to(values.dtype)

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        (gradient,) = ctx.saved_tensors
        return 4 * grads[0] * gradient, None


def _samples_a_slice(pattern: Pattern) -> int:
    """Of the Gram matrix: a table of 2 MB, in whole registers of 16 numbers, of which at least two make a row worth its
    lookup (measured on a CPU at widths 4,608 to 65,536). On a GPU a tile's width, and fewer launches."""
    if pattern.columns.is_cuda:
        count = max(128, 2**25 // pattern.width)
    else:
        count = max(32, 2**19 // pattern.width // 16 * 16)
    return max(1, min(pattern.batch, count))


def _slices(pattern: Pattern, count: int) -> Iterator[slice]:
    """The entries of the first `count` samples, of the next, and so on."""
    firsts = range(0, max(1, pattern.batch), count)
    if len(firsts) == 1:
        begins = [0]
    elif pattern.per_row is not None:
        begins = [first * pattern.per_row for first in firsts]
    else:
        # Here alone the device is waited for.
        begins = pattern.offsets[:-1][::count].tolist()
    for begin, end in zip(begins, [*begins[1:], pattern.columns.shape[0]], strict=True):
        yield slice(begin, end)


def _gram_slices(values: Tensor, pattern: Pattern) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of sparse codes: some latents, and two sparse matrices whose product is their inner products with themselves and
    all later ones."""
    order, transposed = pattern.transposed
    ordered, begins = values.index_select(0, order), transposed.offsets
    rows, columns = pattern.rows, pattern.columns
    size = math.ceil(pattern.width / _GRAM_SLICES)
    for first in range(0, pattern.width, size):
        latents = slice(first, min(first + size, pattern.width))
        if first > 0:
            later = (columns >= first).nonzero().squeeze(1)
            rows, columns, values = (each.index_select(0, later) for each in (rows, columns, values))
        begin, end = begins[[latents.start, latents.stop]].tolist()
        offsets = begins[first : latents.stop + 1] - begin
        left = compressed(offsets, transposed.columns[begin:end], ordered[begin:end], pattern.batch)
        yield latents, left, compressed(_starts(rows, pattern.batch), columns - first, values, pattern.width - first)


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

    @cached_property
    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """In how many samples of the batch each latent is on."""
        values = self.values.detach()
        if self.pattern is None:
            return values.count_nonzero(dim=0)
        on = (values != 0).long()
        return on.new_zeros(self.pattern.width).index_add(0, self.pattern.columns, on)

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        """codes @ W_dec."""
        if self.pattern is None:
            return self.values @ W_dec
        return _Decode.apply(self.values, W_dec, self.pattern)  # pyright: ignore[reportReturnType]

    def sample(self, X: Float[Tensor, "batch d_in"], W_dec: Float[Tensor, "d_sae d_in"]) -> "Codes":
        """X @ W_dec.T where these codes may be non-zero (everywhere, if dense)."""
        if self.pattern is None:
            return Codes(X @ W_dec.T)
        return Codes(_Sample.apply(X, W_dec, self.pattern), self.pattern)  # pyright: ignore[reportArgumentType]

    def transposed_product(self, X: Float[Tensor, "batch d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """codes.T @ X; no gradient goes through it."""
        return self.values.T @ X if self.pattern is None else _scatter(self.values, self.pattern, X)

    @torch.no_grad()
    def add_transposed_product(self, total: Float[Tensor, "d_sae d_in"], X: Float[Tensor, "batch d_in"]) -> None:
        """Add codes.T @ X to `total`, in its type."""
        codes, X = self.with_values(self.values.to(total.dtype)), X.to(total.dtype)
        if codes.pattern is None or not has_sparse_product(total):
            total.addmm_(codes.dense().T, X)
            return
        for some, vectors in codes._parts(X):
            assert some.pattern is not None
            order, transposed = some.pattern.transposed
            values = some.values.index_select(0, order)
            left = compressed(transposed.offsets, transposed.columns, values, transposed.width)
            add_sparse_product(total, left, vectors)

    def _parts(self, X: Float[Tensor, "batch d"]) -> Iterator[tuple["Codes", Tensor]]:
        """Sparse codes of some samples, and these samples' vectors, which are few enough for a CPU's cache."""
        assert self.pattern is not None
        count = math.ceil(len(X) / math.ceil(max(1, X.numel()) / _VECTOR_ENTRIES)) or 1
        for number, entries in enumerate(_slices(self.pattern, count)):
            samples = slice(number * count, (number + 1) * count)
            offsets = self.pattern.offsets[samples.start : samples.stop + 1] - entries.start
            pattern = Pattern(self.pattern.columns[entries], offsets, self.pattern.width)
            yield Codes(self.values[entries], pattern), X[samples]

    @torch.no_grad()
    def add_gram(self, total: Float[Tensor, "d_sae d_sae"]) -> None:
        """Add codes.T @ codes to the upper triangle of `total`, in its type; what is below afterwards means nothing."""
        codes = self.with_values(self.values.to(total.dtype))
        if codes.pattern is None or not has_sparse_product(total):
            dense = codes.dense()
            total.addmm_(dense.T, dense)
            return
        for latents, left, right in _gram_slices(codes.values, codes.pattern):
            add_sparse_product(total[latents, latents.start :], left, right)

    def squared_gram_norm(self) -> Float[Tensor, ""]:
        """The sum of squares of codes @ codes.T, in float32 where the codes are in less.

        The same as that of codes.T @ codes, so the smaller of the two is taken.
        """
        values = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        batch, width = self.shape
        if self.pattern is None:
            return _DenseSquaredGramNorm.apply(values)  # pyright: ignore[reportReturnType]
        pattern = self.pattern
        if batch > width:
            order, pattern = pattern.transposed
            values = values.index_select(0, order)
        return _SquaredGramNorm.apply(values, pattern)  # pyright: ignore[reportReturnType]


def linear_codes(
    x: Float[Tensor, "batch d_in"],
    centre: Float[Tensor, " d_in"] | None,
    W_enc: Float[Tensor, "d_in d_sae"],
    select: Callable[[Float[Tensor, "rows d_sae"]], Pattern] | None = None,
    narrow: Callable[[Pattern, Float[Tensor, " entries"]], Bool[Tensor, " entries"]] | None = None,
) -> Codes:
    """(x - centre) @ W_enc, dense or only where it is wanted.

    Args:
        x: what is encoded.
        centre: is subtracted from it, or None.
        W_enc: encoder weights; held transposed in memory they need no copy on the sparse path.
        select: sees the dense product of some samples at a time and returns the pattern to keep; None keeps everything.
        narrow: sees what was selected of all samples, and says which of it to keep; None keeps it all.
    """
    with torch.no_grad():
        inputs = x if centre is None else x - centre
        if select is None:
            # Detached, lest autocast keeps this copy of the weights, which has no gradient, for others.
            pattern, known = None, inputs @ W_enc.detach()
        else:
            pattern, known = _encode_sparsely(inputs, W_enc, select, narrow)
    values = _Encode.apply(x, centre, W_enc.T, inputs, pattern, known)
    return Codes(values, pattern)  # pyright: ignore[reportArgumentType]


def _encode_sparsely(
    inputs: Tensor,
    W_enc: Tensor,
    select: Callable[[Tensor], Pattern],
    narrow: Callable[[Pattern, Tensor], Tensor] | None,
) -> tuple[Pattern, Float[Tensor, " entries"]]:
    """The entries of inputs @ W_enc that are wanted; the product as a whole is never there on a CPU."""
    device, width = inputs.device.type, W_enc.shape[1]
    exact = not torch.is_autocast_enabled(device)
    dtype = inputs.dtype if exact else torch.get_autocast_dtype(device)
    W = W_enc.to(dtype)
    patterns, found = [], []
    for some in inputs.to(dtype).split(_rows_at_once(inputs, width)):
        products = some @ W
        patterns.append(select(products))
        if exact or narrow is not None:
            found.append(products.reshape(-1)[patterns[-1].rows * width + patterns[-1].columns])
        del products  # before the next ones are there
    pattern = Pattern.stacked(patterns)
    if narrow is not None:
        values = torch.cat(found)
        kept = narrow(pattern, values)
        pattern = Pattern.of_places(pattern.rows[kept], pattern.columns[kept], (pattern.batch, width))
        found = [values[kept]]
    # In bfloat16 the product only says where to look: the codes are computed anew.
    return pattern, torch.cat(found) if exact else _sample(inputs, W_enc.T, pattern)


def _rows_at_once(inputs: Tensor, width: int) -> int:
    """Of the encoder's product: on a CPU so many that its memory does not grow with the batch."""
    batch = max(1, inputs.shape[0])
    if inputs.device.type != "cpu":
        return batch
    return math.ceil(batch / math.ceil(batch * width / _PRODUCT_ENTRIES))

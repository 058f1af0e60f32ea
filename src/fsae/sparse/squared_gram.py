"""The sum of squares of codes @ codes.T, which is that of codes.T @ codes."""

import torch

from fsae.sparse.pattern import Pattern
from fsae.sparse.products import first_order


class DenseSquaredGramNorm(torch.autograd.Function):
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


class SquaredGramNorm(torch.autograd.Function):
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
        return 4 * grads[0] * gradient, None


def _samples_a_slice(pattern: Pattern) -> int:
    """Of the Gram matrix: a table of 2 MB, in whole registers of 16 numbers, of which at least two make a row worth its
    lookup (measured on a CPU at widths 4,608 to 65,536). On a GPU a tile's width, and fewer launches."""
    if pattern.columns.is_cuda:
        count = max(128, 2**25 // pattern.width)
    else:
        count = max(32, 2**19 // pattern.width // 16 * 16)
    return max(1, min(pattern.batch, count))

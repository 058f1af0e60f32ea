"""The encoder's product, the only one over batch x width: kept as a whole, or only where codes may be non-zero."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern
from fsae.sparse.products import first_order
from fsae.sparse.regions import Region, gradient_within, product_within

# The most entries of the encoder's product in memory at a time: fewer are slower, and more are no faster.
ENTRIES_AT_ONCE = 2**24


def encoder_product(
    x: Float[Tensor, "batch d_in"],
    centre: Float[Tensor, " d_in"] | None,
    W_enc: Float[Tensor, "d_in d_sae"],
    select: Callable[[Float[Tensor, "rows d_sae"]], Pattern] | None = None,
    narrow: Callable[[Pattern, Float[Tensor, " entries"]], Bool[Tensor, " entries"]] | None = None,
    entries_at_once: int = ENTRIES_AT_ONCE,
    regions: Sequence[Region] = (),
) -> Codes:
    """Return (x - centre) @ W_enc, dense or only at selected entries.

    Args:
        x: the samples.
        centre: is subtracted from the samples; None for no centre.
        W_enc: encoder weights; held transposed in memory they need no copy on the sparse path.
        select: maps the dense product of some samples to the pattern to keep; None keeps all entries.
        narrow: maps the selected entries of all samples to a mask of those to keep; None keeps all of them.
        entries_at_once: entries of the product in memory at a time, on a CPU and with `select`.
        regions: outside which W_enc.T is zero; empty if it has no such zeros.
    """
    with torch.no_grad():
        inputs = x if centre is None else x - centre
        if select is None:
            # Detached, so that autocast does not cache this copy of the weights, which has no gradient.
            pattern, known = None, _product(inputs, W_enc.detach(), regions)
        else:
            pattern, known = _encode_sparsely(inputs, W_enc, select, narrow, entries_at_once, regions)
    values = _Encode.apply(x, centre, W_enc.T, inputs, pattern, known, regions)
    return Codes(values, pattern)  # pyright: ignore[reportArgumentType]


def _encode_sparsely(
    inputs: Tensor,
    W_enc: Tensor,
    select: Callable[[Tensor], Pattern],
    narrow: Callable[[Pattern, Tensor], Tensor] | None,
    entries_at_once: int,
    regions: Sequence[Region],
) -> tuple[Pattern, Float[Tensor, " entries"]]:
    """Return the selected entries of inputs @ W_enc; on a CPU the whole product is never in memory."""
    device, width = inputs.device.type, W_enc.shape[1]
    exact = not torch.is_autocast_enabled(device)
    dtype = inputs.dtype if exact else torch.get_autocast_dtype(device)
    W = W_enc.to(dtype)
    patterns, found = [], []
    for some in inputs.to(dtype).split(_rows_at_once(inputs, width, entries_at_once)):
        products = _product(some, W, regions)
        patterns.append(select(products))
        if exact or narrow is not None:
            found.append(products.reshape(-1)[patterns[-1].rows * width + patterns[-1].columns])
        del products  # before the next ones are computed
    pattern = Pattern.stacked(patterns)
    if narrow is not None:
        values = torch.cat(found)
        kept = narrow(pattern, values)
        pattern = Pattern.of_places(pattern.rows[kept], pattern.columns[kept], (pattern.batch, width))
        found = [values[kept]]
    # A product in bfloat16 only selects the entries: the codes are computed again.
    return pattern, torch.cat(found) if exact else pattern.sample(inputs, W_enc.T)


def _product(inputs: Tensor, W_enc: Tensor, regions: Sequence[Region]) -> Float[Tensor, "batch d_sae"]:
    return product_within(inputs, W_enc.T, regions) if regions else inputs @ W_enc


def _rows_at_once(inputs: Tensor, width: int, entries_at_once: int) -> int:
    """Return the rows of the encoder's product per slice; on a CPU its memory does not grow with the batch."""
    batch = max(1, inputs.shape[0])
    if inputs.device.type != "cpu":
        return batch
    return math.ceil(batch / math.ceil(batch * width / entries_at_once))


class _Encode(torch.autograd.Function):
    """The product (x - centre) @ W.T, at all entries or at the pattern; `known` are its values.

    The centre's gradient is the sum of the gradients of all samples' inputs. Summing the latents' gradients first
    avoids a product of the whole batch with W, because data need no gradient.
    """

    @staticmethod
    def forward(ctx, x, centre, W, inputs, pattern, known, regions):
        ctx.save_for_backward(inputs, W)
        ctx.pattern, ctx.regions = pattern, regions
        return known

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        inputs, W = ctx.saved_tensors
        codes = Codes(grads[0], ctx.pattern)
        needs_x, needs_centre, needs_W, *_ = ctx.needs_input_grad
        grad_x = codes.decode(W.to(grads[0].dtype)).to(inputs.dtype) if needs_x else None
        grad_centre = -(codes.column_sums().to(W.dtype) @ W) if needs_centre else None
        grad_W = None
        if needs_W:
            X = inputs.to(grads[0].dtype)
            product = gradient_within(codes, X, ctx.regions) if ctx.regions else codes.transposed_product(X)
            grad_W = product.to(W.dtype)
        return grad_x, grad_centre, grad_W, None, None, None, None

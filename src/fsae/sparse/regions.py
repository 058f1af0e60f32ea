"""Products with weights of latents that are zero outside regions: each block of latents times its own dimensions.

A matrix (d_sae, d) of this kind is held as a whole. Its products and gradients read and write the regions alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.sparse.codes import Codes
from fsae.sparse.products import first_order


class Region(NamedTuple):
    """A block of latents, and the dimensions outside which their rows are zero.

    Attributes:
        latents: side by side; the regions of a matrix have all latents in their order.
        dimensions: side by side.
    """

    latents: slice
    dimensions: slice


def product_within(
    X: Float[Tensor, "batch d"], W: Float[Tensor, "d_sae d"], regions: Sequence[Region]
) -> Float[Tensor, "batch d_sae"]:
    """Return X @ W.T, without gradients."""
    products = [X[:, dimensions] @ W[latents, dimensions].T for latents, dimensions in regions]
    return torch.cat(products, dim=1)


def gradient_within(codes: Codes, X: Float[Tensor, "batch d"], regions: Sequence[Region]) -> Float[Tensor, "d_sae d"]:
    """Return codes.T @ X within the regions, and zeros elsewhere, without gradients."""
    product = X.new_zeros(codes.shape[1], X.shape[1])
    for (latents, dimensions), (_, block) in zip(regions, codes.blocks(_ends(regions)), strict=True):
        product[latents, dimensions] = block.transposed_product(X[:, dimensions])
    return product


def decode_within(codes: Codes, W: Float[Tensor, "d_sae d"], regions: Sequence[Region]) -> Float[Tensor, "batch d"]:
    """Return codes @ W, with gradients within the regions."""
    return _Decode.apply(codes.values, W, codes.pattern, regions)  # pyright: ignore[reportReturnType]


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, W, pattern, regions):
        ctx.save_for_backward(values, W)
        ctx.pattern, ctx.regions = pattern, regions
        codes = Codes(values, pattern)
        decoded = None
        for (latents, dimensions), (_, block) in zip(regions, codes.blocks(_ends(regions)), strict=True):
            product = block.decode(W[latents, dimensions])
            decoded = product.new_zeros(codes.shape[0], W.shape[1]) if decoded is None else decoded
            decoded[:, dimensions] += product
        return decoded

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        (grad,), (values, W), regions = grads, ctx.saved_tensors, ctx.regions
        codes = Codes(values.to(grad.dtype), ctx.pattern)
        needs_values, needs_W, *_ = ctx.needs_input_grad
        grad_values = grad_W = None
        if needs_W:
            grad_W = gradient_within(codes, grad, regions).to(W.dtype)
        if needs_values:
            grad_values = torch.empty_like(values)
            for (latents, dimensions), (places, block) in zip(regions, codes.blocks(_ends(regions)), strict=True):
                sampled = block.sample(grad[:, dimensions], W[latents, dimensions].to(grad.dtype))
                grad_values[places] = sampled.values.to(values.dtype)
        return grad_values, grad_W, None, None


def _ends(regions: Sequence[Region]) -> tuple[int, ...]:
    return tuple(latents.stop for latents, _ in regions)

"""Straight-through gradients for thresholds (Rajamanoharan et al. 2024, arXiv 2407.14435, section 3 and appendix)."""

import torch
from torch import Tensor


def _window(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return the rectangle kernel: 1 within half a bandwidth of the threshold."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype)


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre, threshold, bandwidth, to_input):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx, *grads):
        pre, threshold = ctx.saved_tensors
        (grad,) = grads
        through_step = threshold / ctx.bandwidth * _window(pre, threshold, ctx.bandwidth) * grad
        grad_pre = grad * (pre > threshold)
        return grad_pre + through_step if ctx.to_input else grad_pre, -through_step, None, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre, threshold, bandwidth, to_input):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx, *grads):
        pre, threshold = ctx.saved_tensors
        through_step = _window(pre, threshold, ctx.bandwidth) / ctx.bandwidth * grads[0]
        return through_step if ctx.to_input else None, -through_step, None, None


def jump_relu(pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool = False) -> Tensor:
    """Return `pre` if it exceeds its threshold, else 0. Same shapes in and out.

    The gradient in `pre` is the true one; the one in `threshold` is a kernel estimate over `bandwidth` (eq. 11). If
    `to_input`, the estimate's opposite is added to the gradient in `pre` (Anthropic, January 2025 update).
    """
    return _JumpReLU.apply(pre, threshold, bandwidth, to_input)  # pyright: ignore[reportReturnType]


def step(pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool = False) -> Tensor:
    """Return 1 if `pre` exceeds its threshold, else 0.

    The only gradient is the kernel estimate in `threshold` (eq. 12), and if `to_input` its opposite in `pre`.
    """
    return _Step.apply(pre, threshold, bandwidth, to_input)  # pyright: ignore[reportReturnType]

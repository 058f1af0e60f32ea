"""Straight-through gradients for thresholds (Rajamanoharan et al. 2024, arXiv 2407.14435, section 3 and appendix)."""

import torch
from torch import Tensor


def _window(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return the rectangle kernel: 1 within half a bandwidth of the threshold."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype)


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx, *grads):
        pre, threshold = ctx.saved_tensors
        (grad,) = grads
        grad_threshold = -(threshold / ctx.bandwidth) * _window(pre, threshold, ctx.bandwidth) * grad
        return grad * (pre > threshold), grad_threshold, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx, *grads):
        pre, threshold = ctx.saved_tensors
        return None, -_window(pre, threshold, ctx.bandwidth) / ctx.bandwidth * grads[0], None


def jump_relu(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return `pre` if it exceeds its threshold, else 0. Same shapes in and out.

    The gradient in `pre` is the true one; the one in `threshold` is a kernel estimate over `bandwidth` (eq. 11).
    """
    return _JumpReLU.apply(pre, threshold, bandwidth)  # pyright: ignore[reportReturnType]


def step(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1 where pre exceeds its threshold, else 0. The only gradient is the kernel estimate in `threshold` (eq. 12)."""
    return _Step.apply(pre, threshold, bandwidth)  # pyright: ignore[reportReturnType]

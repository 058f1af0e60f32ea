"""The kernel estimates against their formulas, entry by entry."""

from functools import partial

import torch

from fsae.autoencoders.straight_through import jump_relu, step

# One entry per position relative to a threshold of 0.5 and a kernel of width 0.4, which covers (0.3, 0.7):
# below the kernel, inside below, at the threshold, inside above, above the kernel.
PRE = torch.tensor([0.1, 0.4, 0.5, 0.6, 0.9], dtype=torch.float64)
THRESHOLD = torch.full((5,), 0.5, dtype=torch.float64)
BANDWIDTH = 0.4
UPSTREAM = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)


def both_gradients(function):
    pre, threshold = PRE.clone().requires_grad_(), THRESHOLD.clone().requires_grad_()
    value = function(pre, threshold, BANDWIDTH)
    grads = torch.autograd.grad(value, (pre, threshold), UPSTREAM, allow_unused=True)
    return value, *grads


def test_jump_relu():
    value, grad_pre, grad_threshold = both_gradients(jump_relu)
    assert grad_pre is not None
    assert grad_threshold is not None
    # Strictly above its threshold: the entry that equals it is off.
    torch.testing.assert_close(value, torch.tensor([0, 0, 0, 0.6, 0.9], dtype=torch.float64))
    torch.testing.assert_close(grad_pre, torch.tensor([0.0, 0, 0, 4, 5], dtype=torch.float64))
    # -(threshold / bandwidth) = -0.5 / 0.4 = -1.25 times upstream, inside the kernel only.
    torch.testing.assert_close(grad_threshold, torch.tensor([0, -2.5, -3.75, -5.0, 0], dtype=torch.float64))


def test_step():
    value, grad_pre, grad_threshold = both_gradients(step)
    assert grad_threshold is not None
    torch.testing.assert_close(value, torch.tensor([0.0, 0, 0, 1, 1], dtype=torch.float64))
    assert grad_pre is None
    # -1 / bandwidth = -2.5 times upstream, inside the kernel only.
    torch.testing.assert_close(grad_threshold, torch.tensor([0, -5.0, -7.5, -10.0, 0], dtype=torch.float64))


def test_estimates_reach_the_input_if_asked_for():
    _, grad_pre, grad_threshold = both_gradients(partial(jump_relu, to_input=True))
    # The true gradient, and 1.25 times upstream inside the kernel.
    torch.testing.assert_close(grad_pre, torch.tensor([0, 2.5, 3.75, 4 + 5.0, 5], dtype=torch.float64))
    torch.testing.assert_close(grad_threshold, torch.tensor([0, -2.5, -3.75, -5.0, 0], dtype=torch.float64))
    _, grad_pre, grad_threshold = both_gradients(partial(step, to_input=True))
    torch.testing.assert_close(grad_pre, -grad_threshold)
    torch.testing.assert_close(grad_threshold, torch.tensor([0, -5.0, -7.5, -10.0, 0], dtype=torch.float64))


def test_step_gradient_estimates_the_density_at_the_threshold():
    # d/d threshold E[1(z > threshold)] = -density(threshold): 1e6 standard normal draws at threshold 0.5, where the
    # density is exp(-1/8) / sqrt(2 pi) = 0.35207. About 35,000 draws fall into a kernel of 0.1: standard error 0.5 %.
    pre = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    threshold = torch.tensor(0.5, requires_grad=True)
    step(pre, threshold.expand_as(pre), 0.1).mean().backward()
    assert threshold.grad is not None
    assert abs(float(threshold.grad) + 0.35207) < 4 * 0.005 * 0.35207


def test_jump_relu_gradient_estimates_that_of_the_mean():
    # d/d threshold E[z 1(z > threshold)] = -threshold density(threshold) = -0.5 * 0.35207 = -0.17603.
    pre = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    threshold = torch.tensor(0.5, requires_grad=True)
    jump_relu(pre, threshold.expand_as(pre), 0.1).mean().backward()
    assert threshold.grad is not None
    assert abs(float(threshold.grad) + 0.17603) < 4 * 0.005 * 0.17603


def test_threshold_in_float32_gets_a_float32_gradient_from_short_pre_activations():
    pre = PRE.bfloat16().requires_grad_()
    threshold = THRESHOLD.float().requires_grad_()
    value = jump_relu(pre, threshold, BANDWIDTH) + step(pre, threshold, BANDWIDTH)
    assert value.dtype == torch.bfloat16
    value.sum().backward()
    assert threshold.grad is not None
    assert threshold.grad.dtype == torch.float32
    # -(1.25 + 2.5) inside the kernel.
    torch.testing.assert_close(threshold.grad, torch.tensor([0, -3.75, -3.75, -3.75, 0]))

"""Gradients that have none themselves."""

from collections.abc import Callable
from typing import Any

from torch.autograd.function import once_differentiable


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that cannot be differentiated again, and says so where somebody tries."""
    # A function of its own for its type alone: type checkers take once_differentiable's result for another signature.
    return once_differentiable(backward)

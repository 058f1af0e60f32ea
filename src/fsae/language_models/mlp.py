"""The MLP of a block as frozen tensors, and its Jacobian without a matrix per sample."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Affine(NamedTuple):
    """An affine layer, x W + bias."""

    W: Float[Tensor, "d_in d_out"]
    bias: Float[Tensor, " d_out"]

    def __call__(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """Return the layer's outputs."""
        return x @ self.W + self.bias

    def to(self, device: torch.device) -> "Affine":
        """Return the layer on a device."""
        return Affine(self.W.to(device), self.bias.to(device))


@dataclass(frozen=True, eq=False, kw_only=True)
class MLP:
    """An MLP: out(activation(into(x))), or with a gate out(activation(gate(x)) * into(x)).

    Attributes:
        into, gate: (d_in, d_mlp); gate is None without one.
        out: (d_mlp, d_out).
        activation: elementwise.
    """

    into: Affine
    out: Affine
    activation: Callable[[Tensor], Tensor]
    gate: Affine | None = None

    def __call__(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """Return the MLP's outputs."""
        hidden = self.into(x)
        return self.out(self.activation(hidden) if self.gate is None else self.activation(self.gate(x)) * hidden)

    def to(self, device: torch.device) -> "MLP":
        """Return the MLP on a device."""
        gate = None if self.gate is None else self.gate.to(device)
        return MLP(into=self.into.to(device), out=self.out.to(device), activation=self.activation, gate=gate)

    def into_hidden(self, x: Float[Tensor, "batch d_in"]) -> list[tuple[Tensor, Tensor]]:
        """Return matrices W (d_in, d_mlp) and factors s (batch, d_mlp) whose sum of W diag(s) is the Jacobian of the
        hidden layer at each x; `out.W` follows it."""
        hidden = self.into(x)
        if self.gate is None:
            return [(self.into.W, self._slopes(hidden))]
        gate = self.gate(x)
        return [(self.gate.W, self._slopes(gate) * hidden), (self.into.W, self.activation(gate))]

    def _slopes(self, values: Tensor) -> Tensor:
        """Return the derivative of the activation at each value."""
        with torch.enable_grad():
            at = values.detach().requires_grad_()
            (slopes,) = torch.autograd.grad(self.activation(at).sum(), at)
        return slopes

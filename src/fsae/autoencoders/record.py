"""The forward record: everything that one forward pass computes, read by losses and metrics."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.sparse.codes import Codes


@dataclass(frozen=True, eq=False)
class AffineMap:
    """(inputs - centre) @ weight + bias with weight = directions * scale, multiplied out only by who needs it."""

    inputs: Float[Tensor, "batch d_in"]
    directions: Float[Tensor, "d_in d_sae"]
    bias: Float[Tensor, " d_sae"]
    scale: Float[Tensor, " d_sae"] | None = None
    centre: Float[Tensor, " d_in"] | None = None

    @cached_property
    def centred(self) -> Float[Tensor, "batch d_in"]:
        return self.inputs if self.centre is None else self.inputs - self.centre

    @cached_property
    def weight(self) -> Float[Tensor, "d_in d_sae"]:
        return self.directions if self.scale is None else self.directions * self.scale

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        return torch.addmm(self.bias, self.centred, self.weight)

    def at(self, latents: Tensor) -> Float[Tensor, "batch latents"]:
        """Only the named latents' columns."""
        # index_select's backward adds in a fixed order, and of rows its gradient is held as that of W_enc is.
        weight = self.directions.T.index_select(0, latents).T
        if self.scale is not None:
            weight = weight * self.scale.index_select(0, latents)
        return torch.addmm(self.bias.index_select(0, latents), self.centred, weight)


@dataclass(frozen=True, eq=False)
class ForwardRecord:
    """Everything a forward pass knows; losses and metrics read it and need no branch per architecture.

    Attributes:
        inputs: (batch, d_in) what was encoded, as given.
        pre_activations: (batch, d_sae) as an affine map of the encoder's input. For gated: the magnitude path.
        codes: (batch, d_sae).
        reconstruction: (batch, d_in).
        W_dec: (d_sae, d_in).
        b_dec: (d_in,).
        code_weights: (d_sae,) what a unit of each code is worth to a sparsity term: decoder norms under `free`,
            None (all one) under `unit`.
        gate: gated only: the rectified gate pre-activations, which carry the sparsity loss and the auxiliary path.
        active: jumprelu only: 1 where a code is on, with the straight-through gradient to the thresholds.
        rank: what latents are chosen by, as a function of their pre-activations, where it is not their value.
        targets: (batch, d_in) what the inputs shall be turned into; None for the inputs themselves.
    """

    inputs: Float[Tensor, "batch d_in"]
    pre_activations: AffineMap
    codes: Codes
    reconstruction: Float[Tensor, "batch d_in"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    code_weights: Float[Tensor, " d_sae"] | None = None
    gate: Codes | None = None
    active: Codes | None = None
    rank: Callable[[Tensor], Tensor] | None = None
    targets: Float[Tensor, "batch d_in"] | None = None

    @property
    def wanted(self) -> Float[Tensor, "batch d_in"]:
        """What the reconstruction is compared with: the targets, or the inputs where there are none."""
        return self.inputs if self.targets is None else self.targets

    @property
    def error(self) -> Float[Tensor, "batch d_in"]:
        """wanted - reconstruction."""
        return self.wanted - self.reconstruction


@dataclass(frozen=True, eq=False)
class Encoding:
    """What an architecture's encoder returns; the base class completes it to a `ForwardRecord`."""

    codes: Codes
    pre_activations: AffineMap
    extra: dict[str, Any] = field(default_factory=dict)

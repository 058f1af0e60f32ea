"""The attention of one layer: patterns and values of its heads."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention of one layer over rows of text.

    Attributes:
        pattern: the weight of each source position for each destination position.
        values: the values at each source position; heads that share values each have a copy.
    """

    pattern: Float[Tensor, "row head destination source"]
    values: Float[Tensor, "row source head d_head"]

    def outputs(self) -> Float[Tensor, "row destination head d_head"]:
        """Return the heads' outputs: the values weighted by the pattern."""
        return torch.einsum("rhds,rshe->rdhe", self.pattern, self.values)

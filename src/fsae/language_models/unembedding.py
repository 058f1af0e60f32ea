"""The unembedding: from the end of the residual stream to the logits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Columns of the matrix that are converted to float32 at a time.
_TOKENS_AT_ONCE = 2**15


@dataclass(frozen=True, eq=False)
class Unembedding:
    """The final norm of a language model and the matrix behind it.

    logits(x) = scale * (norm_weight * n(x)) @ W_U + constants, with n(x) = c(x) / (the root mean square of c(x)). c
    subtracts the mean of x if the norm is a LayerNorm, and is the identity if it is an RMSNorm. A model without a final
    norm has n(x) = x and a weight of ones. A soft cap that some models put on their logits is not part of it.

    Attributes:
        W_U: unembedding matrix, in the model's type.
        norm_weight: the factors of the final norm, as they are applied: 1 + w for Gemma's norms.
        centred: whether the final norm subtracts the mean.
        scale: factor of all logits.
    """

    W_U: Float[Tensor, "d_model d_vocab"]
    norm_weight: Float[Tensor, " d_model"]
    centred: bool
    scale: float = 1.0

    def effects(
        self,
        directions: Float[Tensor, "directions d_model"],
        through_norm: bool = True,
        tokens_at_once: int = _TOKENS_AT_ONCE,
    ) -> Float[Tensor, "directions d_vocab"]:
        """Return scale * (norm_weight * c(direction)) @ W_U, or scale * direction @ W_U without the norm, in float32.

        It is what a small step along the direction adds to the logits, times the root mean square of c(x), and without
        the part that the norm removes: a step along c(x) itself changes only the length, which the norm divides by.
        """
        if through_norm:
            if self.centred:
                directions = directions - directions.mean(1, keepdim=True)
            directions = directions * self.norm_weight
        effects = directions.new_empty(len(directions), self.W_U.shape[1])
        for begin in range(0, self.W_U.shape[1], tokens_at_once):
            tokens = slice(begin, begin + tokens_at_once)
            torch.matmul(self.scale * directions, self.W_U[:, tokens].to(directions.dtype), out=effects[:, tokens])
        return effects

"""A forward pass: the tokens of its rows, and the part of them that it computes."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """A forward pass over rows of tokens; with a key-value cache it computes only the last positions.

    Attributes:
        tokens: all tokens of the rows so far, including those whose keys and values are cached.
        real: False at padding.
        prompt: True at the tokens that were given, False at generated tokens and at padding.
        first: the first position that this pass computes; 0 without a cache.
    """

    tokens: Int[Tensor, "row position"]
    real: Bool[Tensor, "row position"]
    prompt: Bool[Tensor, "row position"]
    first: int = 0

    @classmethod
    def over(cls, tokens: Int[Tensor, "row position"], prompt: int | None = None) -> "ForwardPass":
        """Return the pass over whole rows without padding.

        Args:
            tokens: the rows.
            prompt: how many tokens at the beginning of each row were given; None for all.
        """
        real = torch.ones_like(tokens, dtype=torch.bool)
        given = real.clone()
        if prompt is not None:
            given[:, prompt:] = False
        return cls(tokens, real, given)

    def followed_by(self, drawn: Int[Tensor, " row"], cached: bool) -> "ForwardPass":
        """Return the pass with one more generated token per row.

        Args:
            drawn: the tokens.
            cached: whether keys and values of the tokens so far are in a cache.
        """
        added = torch.ones_like(drawn, dtype=torch.bool)[:, None]
        return ForwardPass(
            tokens=torch.cat([self.tokens, drawn[:, None]], dim=1),
            real=torch.cat([self.real, added], dim=1),
            prompt=torch.cat([self.prompt, ~added], dim=1),
            first=self.tokens.shape[1] if cached else 0,
        )

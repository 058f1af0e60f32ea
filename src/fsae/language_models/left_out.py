"""The positions that a dictionary's training left out: the dictionary has nothing to say about them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LeftOut:
    """Positions of text that training left out.

    Attributes:
        tokens: ids of tokens at which there is nothing.
        positions: how many positions at the beginning of each row.
        norm_limit: activations of a greater norm; None for no limit.
    """

    tokens: frozenset[int] = frozenset()
    positions: int = 0
    norm_limit: float | None = None

    def counted(
        self, tokens: Int[Tensor, "row position"], real: Bool[Tensor, "row position"]
    ) -> Bool[Tensor, "row position"]:
        """Return the positions that the text allows.

        Args:
            tokens: token ids.
            real: False at padding, which counts as no position.
        """
        ids = torch.tensor(sorted(self.tokens), dtype=torch.long, device=tokens.device)
        return real & ~torch.isin(tokens, ids) & (real.cumsum(1) > self.positions)

    def within(self, activations: Float[Tensor, "*place d"]) -> Bool[Tensor, "*place"]:
        """Return which activations are not massive."""
        if self.norm_limit is None:
            return torch.ones(activations.shape[:-1], dtype=torch.bool, device=activations.device)
        return activations.float().norm(dim=-1) <= self.norm_limit

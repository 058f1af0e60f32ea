"""Prompts of equal length, and the outcome that a language model gives each of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prompts(ABC):
    """Prompts of equal length with an outcome: a number per prompt that is a function of the last token's logits.

    Attributes:
        tokens: the prompts.
    """

    tokens: Int[Tensor, "row position"]

    @abstractmethod
    def outcome(self, logits: Float[Tensor, "row position d_vocab"]) -> Float[Tensor, " row"]:
        """Return each prompt's outcome."""

    def __len__(self) -> int:
        return len(self.tokens)

    def of(self, rows: Tensor | slice | Sequence[int]) -> Self:
        """Return some of the prompts."""
        return type(self)(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})

    def parts(self, rows_at_once: int) -> Iterator[tuple[slice, Self]]:
        """Yield the prompts in parts, each with its place."""
        for begin in range(0, len(self), rows_at_once):
            place = slice(begin, begin + rows_at_once)
            yield place, self.of(place)


@dataclass(frozen=True, eq=False)
class Contrasts(Prompts):
    """Prompts whose outcome is logit(right answer) - logit(wrong answer).

    Attributes:
        right, wrong: ids of the answers.
    """

    right: Int[Tensor, " row"]
    wrong: Int[Tensor, " row"]

    def outcome(self, logits: Float[Tensor, "row position d_vocab"]) -> Float[Tensor, " row"]:
        """Return the difference of two logits."""
        last, rows = logits[:, -1], torch.arange(len(logits), device=logits.device)
        return last[rows, self.right.to(logits.device)] - last[rows, self.wrong.to(logits.device)]


@dataclass(frozen=True, eq=False)
class Predictions(Prompts):
    """Prompts whose outcome is the probability of one next token.

    Attributes:
        token: ids of the next tokens.
    """

    token: Int[Tensor, " row"]

    def outcome(self, logits: Float[Tensor, "row position d_vocab"]) -> Float[Tensor, " row"]:
        """Return a probability."""
        rows = torch.arange(len(logits), device=logits.device)
        return logits[:, -1].float().softmax(1)[rows, self.token.to(logits.device)]

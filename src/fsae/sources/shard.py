"""Shards: the unit in which activations are harvested, stored and read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Part(Enum):
    """The two parts of every data set; a document's content alone decides which part it is in."""

    train = "train"
    held_out = "held_out"


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Numbers of vectors that a run wants of each part, and their division into shards.

    Attributes:
        tokens: vectors of each part.
        shard_tokens: vectors per shard; the last shard of a part may have fewer.
    """

    tokens: dict[Part, int]
    shard_tokens: int

    def shards(self, part: Part) -> int:
        """Return how many shards a part has."""
        return -(-self.tokens[part] // self.shard_tokens)

    def count(self, part: Part, number: int) -> int:
        """Return how many vectors a shard has."""
        return min(self.shard_tokens, self.tokens[part] - number * self.shard_tokens)


@dataclass(frozen=True, eq=False, kw_only=True)
class Shard:
    """Activations at one site, or at several side by side, with the place of each vector in the text.

    Training and evaluation read the activations, and a term that compares neighbours in the text reads the documents.
    The other columns are kept for the latents' contexts and labels: no reader needs them yet, and a store that lacked
    them would have to be harvested again.

    Attributes:
        activations: raw, in the language model's dtype.
        tokens: the token id at the position of each vector.
        documents: the number of the document in its part, counted from 0.
        labels: the label of that document; None if the data set has no labels.
    """

    activations: Float[Tensor, "vectors d_in"]
    tokens: Int[Tensor, " vectors"]
    documents: Int[Tensor, " vectors"]
    labels: Int[Tensor, " vectors"] | None

    def __len__(self) -> int:
        return len(self.activations)

    @classmethod
    def joined(cls, shards: Sequence["Shard"]) -> "Shard":
        """Return shards of one text at several sites as one, with their activations side by side."""
        if len(shards) == 1:
            return shards[0]
        assert all(torch.equal(each.tokens, shards[0].tokens) for each in shards)
        return replace(shards[0], activations=torch.cat([each.activations for each in shards], dim=1))

    def previous(self, part: Part, number: int) -> Int[Tensor, " vectors"]:
        """Return, for each row of shard `number` of a part, the row of the vector before it in its document.

        It is the nearest earlier vector that the shard holds: positions that do not count are skipped. -1 for the first
        vector of a document in the shard.
        """
        rows = torch.argsort(order_in_shard(part, number, len(self)))
        same = self.documents[rows[1:]] == self.documents[rows[:-1]]
        previous = torch.full_like(rows, -1)
        previous[rows[1:]] = torch.where(same, rows[:-1], -1)
        return previous

    def beginning(self, part: Part, number: int, count: int) -> "Shard":
        """Return shard `number` of a part reduced to its first `count` vectors in the text."""
        if len(self) <= count:
            return self
        places = torch.argsort(order_in_shard(part, number, len(self)))
        rows = places[order_in_shard(part, number, count)]
        return Shard(
            activations=self.activations[rows],
            tokens=self.tokens[rows],
            documents=self.documents[rows],
            labels=None if self.labels is None else self.labels[rows],
        )


def order_in_shard(part: Part, number: int, count: int) -> Int[Tensor, " count"]:
    """Return, for each row of a shard, its place in the shard's text.

    Training shards are shuffled across documents; held-out shards keep the order of the text.
    """
    if part is Part.held_out:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(number))

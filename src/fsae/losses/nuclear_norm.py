"""The nuclear norm of groups of decoder rows, which lowers the dimension of their subspaces."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fsae.autoencoders.record import ForwardRecord
from fsae.losses.term import LossTerm, Moment, TermValue
from fsae.ranges import WEIGHT

# Added to the squared singular values, whose square roots are taken.
_RIDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class NuclearNorm(LossTerm):
    """The sum of the singular values of a group's decoder rows, averaged over the groups (SASA, arXiv 2606.06333).

    Its gradient is the polar factor of the rows. `stable_rank` is logged in addition: the mean of
    sum sigma^2 / max sigma^2, between 1 and the rank of a group.
    """

    weight: float = field(default=100.0, metadata=WEIGHT)

    needs: ClassVar[frozenset[str]] = frozenset({"group_rank"})
    of_decoder: ClassVar[bool] = True

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        assert record.group_rank is not None
        blocks = record.W_dec.unflatten(0, (-1, record.group_rank))
        with torch.no_grad():
            squares, vectors = torch.linalg.eigh(blocks @ blocks.mT)
            squares = squares.clamp_min(0)
            polar = vectors * (squares + _RIDGE).rsqrt().unsqueeze(1) @ vectors.mT @ blocks
            stable_rank = (squares.sum(1) / squares.amax(1).clamp_min(1e-30)).mean()
        value = (polar * blocks).sum() / len(blocks)
        return TermValue(value, {"stable_rank": stable_rank})

"""Reconstruction terms: distances of the reconstruction from its target."""

from dataclasses import dataclass
from typing import ClassVar

from fsae.autoencoders.record import ForwardRecord
from fsae.losses.term import LossTerm, Moment, TermValue


@dataclass(frozen=True, kw_only=True)
class SquaredError(LossTerm):
    """|x - x_hat|^2 summed over the target's dimensions, averaged over the batch, in scaled units."""

    minimised_by_least_squares: ClassVar[bool] = True

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        return TermValue(record.error.square().sum(1).mean())

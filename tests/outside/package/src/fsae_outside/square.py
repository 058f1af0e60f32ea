"""A penalty on the squares of codes."""

from dataclasses import dataclass

from fsae.autoencoders.record import ForwardRecord
from fsae.losses.term import LossTerm, Moment, TermValue


@dataclass(frozen=True, kw_only=True)
class Square(LossTerm):
    """The sum of squared codes, averaged over the batch."""

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        return TermValue(record.codes.values.square().sum() / record.codes.shape[0])

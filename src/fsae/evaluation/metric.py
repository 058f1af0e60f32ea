"""What a held-out metric is: sums over batches, and numbers taken from them at the end."""

from typing import Protocol

from fsae.autoencoders.record import ForwardRecord


class Metric(Protocol):
    """Named numbers over a whole data set, whatever batches it comes in.

    Sums stay on the device in float64; only `compute` waits for it. A ratio is taken once, of sums over the whole set,
    never averaged over batches.
    """

    def update(self, record: ForwardRecord) -> None:
        """Add one batch."""
        ...

    def compute(self) -> dict[str, float]:
        """The numbers over everything added so far, by name."""
        ...

"""A source of training vectors: what everything after it may know of where they come from."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor


class Batch(NamedTuple):
    """Inputs and what they shall be turned into; for an autoencoder both are the same tensor."""

    inputs: Float[Tensor, "batch d_in"]
    targets: Float[Tensor, "batch d_out"]


class Source(Protocol):
    """A resumable stream of shuffled training vectors, and a held-out part.

    Attributes:
        d_in: width of the vectors.
        unit: what one vector is, for axes and progress ("tokens", "samples").
        device: where batches are.
    """

    d_in: int
    unit: str
    device: torch.device

    def first_vectors(self) -> Float[Tensor, "vectors d_in"]:
        """Raw vectors of the training part, to measure scale and centre on; the stream's first ones."""
        ...

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Raw training batches without end, from the position on."""
        ...

    def held_out(self, count: int, batch_size: int) -> Iterator[Batch]:
        """At least one and at most `count` raw vectors of the held-out part, always the same ones."""
        ...

    def distinct(self, taken: int) -> int:
        """How many different ones the first `taken` training vectors are."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position: enough to go on with exactly the batch that would have come next."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def in_batches(parts: Iterable[Float[Tensor, "part d_in"]], size: int) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Vectors that come in parts of any size, in batches of one size; the last one may be smaller."""
    rest: Tensor | None = None
    for part in parts:
        joined = part if rest is None else torch.cat([rest, part])
        whole = len(joined) // size * size
        if whole:
            yield from joined[:whole].split(size)
        rest = joined[whole:] if whole < len(joined) else None
    if rest is not None:
        yield rest

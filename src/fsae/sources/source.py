"""A source of vectors: all that training and evaluation know of where vectors come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from fsae.language_models.sites import Site
    from fsae.language_models.transformer_lens import TransformerLensModel
    from fsae.sources.supply import Supply
    from fsae.sparse.codes import Codes


class Batch(NamedTuple):
    """Inputs and the targets that they are to become; for an autoencoder both are the same tensor."""

    inputs: Float[Tensor, "batch d_in"]
    targets: Float[Tensor, "batch d_out"]


class HeldOutText(Protocol):
    """Held-out text and the language model that reads it."""

    @property
    def model(self) -> TransformerLensModel:
        """The language model, opened on first use."""
        ...

    @property
    def site(self) -> Site:
        """The site whose activations are the source's vectors."""
        ...

    @property
    def rows_at_once(self) -> int:
        """Rows per forward pass of the language model."""
        ...

    @property
    def norm_limit(self) -> float | None:
        """The norm above which an activation is left out of training and evaluation; None for no limit."""
        ...

    @property
    def prepends_bos(self) -> bool:
        """Whether each row begins with a BOS."""
        ...

    def held_out_rows(self, count: int) -> tuple[Int[Tensor, "row context"], Bool[Tensor, "row context"]]:
        """Return the first rows that have `count` tokens between them (fewer if there are no more), and which positions
        count.

        Raises:
            ValueError: the held-out part is shorter than one row.
        """
        ...


class KnownFeatures(Protocol):
    """The ground truth of synthetic vectors."""

    @property
    def features(self) -> Float[Tensor, "features d_in"]:
        """The directions of the features."""
        ...

    def held_out_codes(self, count: int) -> Iterator[Codes]:
        """Yield the coefficients, (some, features), of the samples of `held_out`."""
        ...


class FillableStore(Protocol):
    """An activation store that can be filled without training."""

    def fill_store(self) -> dict[str, float]:
        """Harvest what the store lacks; returns `harvest/...` numbers."""
        ...


class Source(ABC):
    """A resumable stream of shuffled training vectors, and a held-out part.

    Attributes:
        d_in: width of the vectors.
        unit: what one vector is, for axes and progress ("tokens", "samples").
        device: where batches are.
        text: held-out text with its language model, if vectors are activations of one.
        truth: the features that vectors are made of, if they are known.
        store: the activation store behind the source, if it has one.
        held_out_found: held-out vectors in the last pass over them, including those that it left out for their norm;
            None if the source leaves none out.
        massive_share: share of these that it left out.
        tail_remedy: what lowers the share of variance that few vectors of large norm hold; "" if nothing does.
    """

    d_in: int
    unit: str
    device: torch.device
    text: HeldOutText | None = None
    truth: KnownFeatures | None = None
    store: FillableStore | None = None
    held_out_found: int | None = None
    massive_share: float | None = None
    tail_remedy: str = ""

    @abstractmethod
    def first_vectors(self) -> Float[Tensor, "vectors d_in"]:
        """Return the first raw vectors of the training part, from which scale and centre are measured."""

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield raw training batches without end, from the position on."""

    @abstractmethod
    def held_out(self, count: int, batch_size: int) -> Iterator[Batch]:
        """Yield at least one and at most `count` raw vectors of the held-out part, always the same ones."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the position: enough to go on with exactly the batch that would have come next."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""

    @abstractmethod
    def supply(self, trained: int | None, held_out: int | None, held_out_wanted: int) -> Supply:
        """Return how many vectors there were.

        Args:
            trained: training vectors that a run took; None for a run that trained nothing.
            held_out: held-out vectors that its evaluation found; None if it read none.
            held_out_wanted: held-out vectors that its evaluation asked for.
        """

    def costs(self) -> dict[str, float]:
        """Return seconds spent so far, by what they were spent on; "waiting" is the time that training waited."""
        return {}


def in_batches(parts: Iterable[Float[Tensor, "part d_in"]], size: int) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Yield vectors that come in parts of any size in batches of one size; the last batch may be smaller."""
    rest: Tensor | None = None
    for part in parts:
        joined = part if rest is None else torch.cat([rest, part])
        whole = len(joined) // size * size
        if whole:
            yield from joined[:whole].split(size)
        rest = joined[whole:] if whole < len(joined) else None
    if rest is not None:
        yield rest

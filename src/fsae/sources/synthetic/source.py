"""Synthetic data: known features, and a stream of samples of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.devices import any_device
from fsae.matching import unit_rows
from fsae.ranges import between
from fsae.seeds import generator_for
from fsae.sources.source import Batch, Request, Source, SourceSettings, in_batches
from fsae.sources.supply import Supply
from fsae.sparse.codes import Codes

# The number of vectors on which the scale and the biases are measured.
_FIRST = 8192
# Held-out samples are drawn in parts of one size: samples depend on it, and must not depend on the batch size.
_HELD_OUT_AT_ONCE = 2048


class FeatureModel(ABC):
    """Distribution of samples of known features.

    Attributes:
        features: (features, d_in) directions.
        constant: (d_in,) is added to every sample; None for nothing.
    """

    features: Float[Tensor, "features d_in"]
    constant: Float[Tensor, " d_in"] | None = None

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Codes:
        """Draw the sparse coefficients of `count` samples: (count, features)."""


@dataclass(frozen=True, kw_only=True)
class SyntheticSettings(SourceSettings):
    """Base class of the settings of sources that draw samples of known features.

    Attributes:
        d_in: width of the vectors.
        features: how many features there are.
    """

    d_in: int = field(metadata=between(least=1, most=2**20))
    features: int = field(metadata=between(least=1, most=2**28))

    provides: ClassVar[frozenset[str]] = frozenset({"known_features"})

    @abstractmethod
    def model(self) -> FeatureModel:
        """Draw the features."""

    def width(self) -> int:
        return self.d_in

    def source(self, device: torch.device) -> "SyntheticSource":
        """Draw the features; batches will be on `device`."""
        return SyntheticSource(self, device)

    def open(self, request: Request, heartbeat: Callable[[], None]) -> AbstractContextManager["SyntheticSource"]:
        return nullcontext(self.source(any_device()))


class SyntheticSource(Source):
    """Samples of known features as a stream.

    Args:
        settings: the features and their distribution.
        device: where batches will be.

    Attributes:
        features: (features, d_in) the ground truth.
    """

    unit = "samples"

    def __init__(self, settings: SyntheticSettings, device: torch.device):
        self.d_in, self.device = settings.d_in, device
        self.truth = self
        self._model, self._seed = settings.model(), settings.seed
        self._first: Tensor | None = None
        self._batch = 0

    @property
    def features(self) -> Float[Tensor, "features d_in"]:
        return self._model.features

    def first_vectors(self) -> Float[Tensor, "vectors d_in"]:
        if self._first is None:
            self._first = self.vectors(self._draw("first", 0, _FIRST))
        return self._first

    def batches(self, batch_size: int) -> Iterator[Batch]:
        while True:
            vectors = self.vectors(self._draw("train", self._batch, batch_size))
            self._batch += 1
            yield Batch(vectors, vectors)

    def held_out(self, count: int, batch_size: int) -> Iterator[Batch]:
        for vectors in in_batches(map(self.vectors, self.held_out_codes(count)), batch_size):
            yield Batch(vectors, vectors)

    def held_out_codes(self, count: int) -> Iterator[Codes]:
        """Yield the coefficients, (part, features), of the samples of `held_out`."""
        for number, begin in enumerate(range(0, count, _HELD_OUT_AT_ONCE)):
            yield self._draw("held out", number, min(_HELD_OUT_AT_ONCE, count - begin))

    def supply(self, trained: int | None, held_out: int | None, held_out_wanted: int) -> Supply:
        return Supply(trained=trained, distinct=trained, held_out=held_out, held_out_wanted=held_out_wanted)

    def _draw(self, part: str, number: int, count: int) -> Codes:
        return self._model.draw(count, generator_for(self._seed, part, number))

    def vectors(self, codes: Codes) -> Float[Tensor, "batch d_in"]:
        """Return the samples with these coefficients."""
        vectors = codes.decode(self._model.features)
        constant = self._model.constant
        return (vectors if constant is None else vectors + constant).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return {"batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._batch = state["batch"]


def unit_vectors(settings: SyntheticSettings) -> Float[Tensor, "features d_in"]:
    """Draw directions, uniformly and independently."""
    generator = generator_for(settings.seed, "features")
    return unit_rows(torch.randn(settings.features, settings.d_in, generator=generator))


def spread_out(vectors: Float[Tensor, "features d_in"], rounds: int = 20) -> Float[Tensor, "features d_in"]:
    """Return unit vectors near the given ones whose squared cosines have the least sum.

    That sum is least for a tight frame, whose second moments are the same in all directions: each round makes them the
    same, and then the lengths 1. If there are no more vectors than dimensions the vectors become orthogonal.
    """
    vectors = vectors.double()
    for _ in range(rounds):
        left, _, right = torch.linalg.svd(vectors, full_matrices=False)
        vectors = unit_rows(left @ right)
    return vectors.float()

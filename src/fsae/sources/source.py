"""A source of training vectors: the one interface by which training and evaluation know where vectors come from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.language_models.settings import ModelSettings
from fsae.language_models.sites import Site
from fsae.ranges import SEED, Ranged
from fsae.sources.documents import DatasetSettings


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


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that a run asks of its source, besides the source's own settings.

    Attributes:
        model, site, dataset: where a language model's activations come from; None if the source has no language model.
        training_samples: how many samples training takes; 0 if there is no training.
        held_out_samples: how many samples the evaluation takes.
        stores: the folder of all activation stores.
        harvest: whether the run only fills the store.
        spliced: whether the evaluation puts reconstructions back into the language model.
    """

    model: ModelSettings | None = None
    site: Site | None = None
    dataset: DatasetSettings | None = None
    training_samples: int
    held_out_samples: int
    stores: Path
    harvest: bool = False
    spliced: bool = False

    def text(self) -> tuple[ModelSettings, Site, DatasetSettings]:
        """Return model, site and data set of a source that reads a language model."""
        assert self.model is not None, "the source reads a language model"
        assert self.site is not None
        assert self.dataset is not None
        return self.model, self.site, self.dataset


@dataclass(frozen=True, kw_only=True)
class SourceSettings(Ranged, ABC, group="source"):
    """Base class of all source settings: the settings of a source know how to open it.

    Attributes:
        seed: decides the order of the vectors in training, and everything else that the source draws. Runs that share
            it, and the other settings of the stream, see the same batches.
    """

    seed: int = field(default=0, metadata=SEED)

    @abstractmethod
    def open(self, request: Request, heartbeat: Callable[[], None]) -> AbstractContextManager["Source"]:
        """Open the source for a run, or for several runs that share its stream.

        Args:
            request: what the run asks of it.
            heartbeat: called between units of long work; may raise to stop the work.

        Raises:
            ValueError: something that the settings name does not exist or cannot be read.
            OSError: the disk has no room for what must be kept.
        """

    def width(self) -> int | None:
        """Return the width of the vectors if it is known before the source is opened."""
        return None

    def identity(self) -> dict[str, str]:
        """Return what distinguishes the files that the source reads; empty if it reads none."""
        return {}

    def stream_key(self, request: Request) -> Hashable:
        """Return what the requests of two runs must have in common for both to read one opened source."""
        return self


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

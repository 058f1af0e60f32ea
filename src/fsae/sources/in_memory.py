"""Vectors that are all in memory, as a stream that each epoch shuffles again."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.devices import any_device
from fsae.seeds import generator_for
from fsae.sources.source import Batch, Request, Source, SourceSettings
from fsae.sources.supply import Supply


@dataclass(frozen=True, kw_only=True)
class InMemorySettings(SourceSettings):
    """Base class of the settings of sources whose vectors are all in memory from the beginning."""

    @abstractmethod
    def source(self, device: torch.device) -> "InMemorySource":
        """Read or make the vectors; batches will be on `device`."""

    def open(self, request: Request, heartbeat: Callable[[], None]) -> AbstractContextManager["InMemorySource"]:
        return nullcontext(self.source(any_device()))


class InMemorySource(Source):
    """Stream of vectors in memory; the order of the training part depends on the seed and the epoch only.

    Args:
        train: raw training vectors.
        held_out: raw held-out vectors.
        seed: decides the order.
        device: where batches will be.
    """

    unit = "samples"

    def __init__(
        self,
        train: Float[Tensor, "train d_in"],
        held_out: Float[Tensor, "held_out d_in"],
        seed: int,
        device: torch.device,
    ):
        self.d_in, self.device = train.shape[1], device
        # Training vectors are on the device from the beginning: a copy per batch would make the host wait for it.
        self._train, self._held_out, self._seed = train.to(device), held_out, seed
        self._epoch = self._batch = 0

    def first_vectors(self) -> Float[Tensor, "vectors d_in"]:
        return self._train

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield raw training batches without end, from the position on; vectors that fill no batch are left out.

        Raises:
            ValueError: there are fewer vectors than one batch needs.
        """
        whole = len(self._train) // batch_size
        if whole == 0:
            raise ValueError(
                f"trainer.batch_size is {batch_size}, more than the {len(self._train)} training {self.unit}; lower it"
            )
        while True:
            order = torch.randperm(len(self._train), generator=generator_for(self._seed, "order", self._epoch))
            order = order.to(self.device)
            while self._batch < whole:
                places = order[self._batch * batch_size : (self._batch + 1) * batch_size]
                drawn_for = "noise", self._epoch, self._batch
                self._batch += 1
                yield self._made_of(self._train[places], *drawn_for)
            self._epoch, self._batch = self._epoch + 1, 0

    def held_out(self, count: int, batch_size: int) -> Iterator[Batch]:
        # All vectors at once, so that the noise does not depend on the batch size.
        whole = self._made_of(self._held_out, "held-out noise")
        inputs, targets = (each[:count].split(batch_size) for each in (whole.inputs, whole.targets))
        yield from map(Batch, inputs, inputs if whole.targets is whole.inputs else targets)

    def supply(self, trained: int | None, held_out: int | None, held_out_wanted: int) -> Supply:
        distinct = None if trained is None else min(trained, len(self._train))
        return Supply(trained=trained, distinct=distinct, held_out=held_out, held_out_wanted=held_out_wanted)

    def _made_of(self, vectors: Tensor, *drawn_for: object) -> Batch:
        """Return a batch of these vectors; random parts of it are drawn for this batch only."""
        moved = vectors.to(self.device)
        return Batch(moved, moved)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epoch, self._batch = state["epoch"], state["batch"]

"""The interface of a coupling: a term between the members of a population."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.record import ForwardRecord


class Coupling(ABC):
    """A term between the members of a population, in the sum of their objectives."""

    @abstractmethod
    def backward(
        self, autoencoders: Sequence[Autoencoder], records: Sequence[ForwardRecord], step: int, progress: float
    ) -> None:
        """Add the weighted term's gradient to the autoencoders' own.

        Args:
            autoencoders: the members.
            records: their forward records of the step's batch, whose own gradients were computed already.
            step: counts from 0.
            progress: share of the training that is done, 0 to 1.
        """

    @abstractmethod
    def read_interval(self) -> dict[str, float]:
        """Return the means of the term over the steps since the last call (without steps, no means); waits for the
        device."""

    @abstractmethod
    def forget(self) -> None:
        """Forget what depends on the members' latents, because some were resampled."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything that must survive."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""

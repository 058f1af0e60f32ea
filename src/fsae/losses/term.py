"""A loss term: one named number taken from a forward record; it counts by a weight that may rise."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fsae.autoencoders.record import ForwardRecord
from fsae.ranges import SHARE, WEIGHT, Ranged


@dataclass(frozen=True, eq=False)
class TermValue:
    """A term's raw value (a scalar, differentiable) and further numbers worth logging, by name."""

    value: Tensor
    beside: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Moment:
    """State of the training that a term may need in addition to the record.

    Attributes:
        dead_latents: (dead,) indices of latents that have not fired for long; empty if none.
        step: number of the step, from 0.
        steps: number of steps of the training.
        generator: of the random numbers that a term draws, on the CPU. A checkpoint has its state, so that a resumed
            run draws the same numbers.
        memory: numbers and tensors that the term keeps from step to step, by name. A checkpoint has it.
    """

    dead_latents: Tensor
    step: int = 0
    steps: int = 1
    generator: torch.Generator = field(default_factory=torch.Generator)
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """The share of the training that is done, 0 to 1."""
        return self.step / self.steps


@dataclass(frozen=True, kw_only=True)
class Weighted(Ranged, ABC):
    """Something that counts by a weight, which may rise at the beginning of training and fall at its end.

    Attributes:
        weight: factor in the objective.
        warm_up: share of training over which the weight rises linearly from 0.
        decay: share of training, at its end, over which the weight falls linearly to 0.
    """

    weight: float = field(metadata=WEIGHT)
    warm_up: float = field(default=0.0, metadata=SHARE)
    decay: float = field(default=0.0, metadata=SHARE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warm_up + self.decay > 1:
            raise ValueError(
                f"{self._group}.warm_up + {self._group}.decay is {self.warm_up + self.decay:g}; together they must not "
                "exceed 1"
            )

    def weight_at(self, progress: float) -> float:
        """Return the weight after a share `progress` (0 to 1) of the training."""
        rising = min(1.0, progress / self.warm_up) if self.warm_up > 0 else 1.0
        falling = min(1.0, (1 - progress) / self.decay) if self.decay > 0 else 1.0
        return self.weight * rising * falling


@dataclass(frozen=True, kw_only=True)
class LossTerm(Weighted, group="loss"):
    """A named part of the objective. Its settings are the term.

    Attributes:
        weight: factor in the objective; 0 measures the term without training on it.
    """

    weight: float = field(default=1.0, metadata=WEIGHT)

    # Optional fields of the forward record that the term reads; architectures declare which they provide.
    needs: ClassVar[frozenset[str]] = frozenset()
    # What the term needs of the source; see `SourceSettings.provides`.
    needs_of_source: ClassVar[frozenset[str]] = frozenset()
    # True if the decoder of least squares minimises the term.
    minimised_by_least_squares: ClassVar[bool] = False
    # True if the term reads the first latents apart from the others. With blocks they are those of one part.
    reads_prefixes: ClassVar[bool] = False
    # True if the term reads codes, and of the weights their norms at most.
    of_codes: ClassVar[bool] = False
    # True if the decoder alone has a gradient of the term.
    of_decoder: ClassVar[bool] = False

    @property
    def fields_read(self) -> frozenset[str]:
        """The optional fields of the forward record that the term reads with its present settings."""
        return self.needs

    @property
    def needs_code_gradient(self) -> bool:
        """True if weights have a gradient of the term through the codes alone, if rows are unit vectors."""
        return self.of_codes

    @property
    def detaches_decoder(self) -> bool:
        """True if the term reads the decoder and passes it no gradient, by a setting `detach_decoder`."""
        return False

    def check_width(self, name: str, d_sae: int) -> None:
        """Raise ValueError if a setting is impossible for this number of latents; `name` is the term's in the loss."""

    def prefix_widths(self, d_sae: int) -> list[int] | None:
        """Return the widths of the prefixes of the latents that the term trains to reconstruct, the whole width among
        them; None if it does not."""
        return None

    @abstractmethod
    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        """Return the term's raw value for one batch, before its weight."""

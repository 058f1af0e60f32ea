"""An evaluation: one named measurement of trained autoencoders, with its own settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fsae.outputs.results import Meaning
from fsae.ranges import Ranged

if TYPE_CHECKING:
    from fsae.evaluation.subject import Subject


@dataclass(frozen=True, eq=False)
class Measured:
    """What an evaluation found of one run.

    Attributes:
        numbers: by name, for each of the run's autoencoders in their order. A population's results have their means,
            and each member's own.
        shared: numbers of the run as a whole, such as how far its members agree.
        content: further JSON by name, which stands in `results.json`, such as a histogram.
        files: further JSON by file name, written into the run's folder.
        pictures: by file name in the run's `plots/`, what draws it: a function of the path.
    """

    numbers: Sequence[dict[str, float]] = ()
    shared: dict[str, float] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Callable[[Path], None]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Ranged, ABC, group="eval"):
    """A named measurement. Its settings are the evaluation: there is nothing else to hold.

    A class keeps `needs`, `reads` and `meanings` as class attributes:

    needs: what it cannot be measured without, by name: what a source provides ("language_model", "known_features",
        ...), what a run has ("members", if it trains a population), or another evaluation ("vectors"), which comes
        before it.
    reads: evaluations that come before it if they are chosen, because it reads what they found.
    meanings: each number's name to what it says.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset()
    meanings: ClassVar[dict[str, Meaning]] = {}

    @property
    def held_out(self) -> int:
        """Held-out samples that it reads; 0 for none of the source's own vectors."""
        return 0

    @abstractmethod
    def measure(self, subject: Subject) -> list[Measured]:
        """Return what it finds of each of the subject's runs, in their order.

        Raises:
            ValueError: the data do not allow it, with what to do.
        """

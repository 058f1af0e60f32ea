"""An evaluation: one named measurement of trained autoencoders, with its own settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from fsae.outputs.results import Meaning
from fsae.ranges import Ranged

if TYPE_CHECKING:
    from fsae.evaluation.subject import Subject


@dataclass(frozen=True, eq=False)
class Measured:
    """The findings of an evaluation on one run; a run with empty ones is left out.

    Attributes:
        numbers: by name, for each of the run's autoencoders in their order. A population's results have the means
            and each member's own numbers.
        shared: numbers of the run as a whole, such as how far its members agree.
        content: further JSON by name for `results.json`, such as a histogram.
        files: further JSON by file name, written into the run's folder.
        pictures: by file name in the run's `plots/`, the function of the path that draws the picture.
        folders: by folder name in the run's folder, the function of the path that replaces the folder.
        densities: for each of the run's autoencoders, (d_sae,) share of held-out samples on which each latent is on;
            empty if the evaluation measures none.
        meanings: of the numbers whose names depend on the run, such as those of each part of a crosscoder.
    """

    numbers: Sequence[dict[str, float]] = ()
    shared: dict[str, float] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    folders: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    densities: Sequence[Float[Tensor, " d_sae"]] = ()
    meanings: dict[str, Meaning] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Return whether nothing was found."""
        return not any(getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True, kw_only=True)
class Evaluation(Ranged, ABC, group="eval"):
    """A named measurement. Its settings are the evaluation; it has no other state.

    A class keeps `needs`, `reads` and `meanings` as class attributes:

    needs: names of the things that the measurement requires: capabilities of a source ("language_model",
        "known_features", ...) or of a run ("members", if it trains a population), or another evaluation ("vectors"),
        which is measured first.
    reads: evaluations whose findings it reads if they are chosen; they are measured first.
    meanings: the meaning of each number, by the number's name.
    in_sweeps: whether the jobs of a sweep are measured by it if only a YAML file lists it, and not the command line.
    repeatable: whether its settings, the dictionary, the source and the code decide its numbers, so that a finished run
        that has them is not measured again.
    in_folder: whether an evaluation that reads it finds its findings in the run's folder.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset()
    meanings: ClassVar[dict[str, Meaning]] = {}
    in_sweeps: ClassVar[bool] = True
    repeatable: ClassVar[bool] = True
    in_folder: ClassVar[bool] = False

    @property
    def held_out(self) -> int:
        """Return the number of held-out samples that it reads; 0 if it reads none of the source's own vectors."""
        return 0

    @abstractmethod
    def measure(self, subject: Subject) -> list[Measured]:
        """Return the findings on each of the subject's runs, in their order.

        Raises:
            ValueError: the data do not allow the measurement; the message has the remedy.
        """

"""The subject of evaluations: the autoencoders of one or several runs, and the source of their vectors."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import End
from fsae.losses.fisher import Fisher
from fsae.progress import Progress
from fsae.sources.source import Batch, Source

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Examined:
    """The autoencoders of one run.

    Attributes:
        autoencoders: in eval mode and in raw units: one, or the members of a population.
        best: the member with the least unexplained variance at the end of training.
        fisher: the form, the estimator and the scope of the run's Fisher sums.
        samples: samples that they were trained on in this run; 0 if they were only read.
        folder: of the run, where a long evaluation keeps what is done; None if the run has none.
        identity: digest of all that decides its numbers besides an evaluation's settings, so that an evaluation that
            its folder has is left alone; None to measure in any case.
        number: of the only autoencoder here in a run that has several; None if they are all of the run's.
    """

    autoencoders: Sequence[Autoencoder]
    best: int = 0
    fisher: Fisher = field(default_factory=Fisher)
    samples: int = 0
    folder: Path | None = None
    identity: str | None = None
    number: int | None = None

    def member(self, place: int) -> int | None:
        """Return the number in the run of the autoencoder at a place; None if it is the run's only one."""
        if self.number is not None:
            return self.number
        return place if len(self.autoencoders) > 1 else None


class Subject:
    """The autoencoders of several runs on one source, measured together.

    Args:
        runs: each run's autoencoders.
        source: the source of the vectors that they read.
        heartbeat: called between batches; may raise to stop the measuring.
        read_by: the end of the source that each autoencoder of a pair reconstructs; a single None if all are between
            both ends.

    Attributes:
        found_samples: held-out vectors that the largest pass over them read, including vectors left out for their norm;
            None before the first pass.
    """

    def __init__(
        self,
        runs: Sequence[Examined],
        source: Source,
        heartbeat: Callable[[], None] = lambda: None,
        read_by: Sequence[End | None] = (None,),
    ):
        self.runs, self.source, self.heartbeat, self._read_by = runs, source, heartbeat, read_by
        self.found_samples: int | None = None
        self._found: dict[type, list] = {}

    @cached_property
    def ends(self) -> list["Subject"]:
        """Return a subject for each end of the source, if runs are pairs of autoencoders; otherwise this one alone."""
        return [
            self
            if end is None
            else Subject(
                [replace(run, autoencoders=[run.autoencoders[number]], best=0, number=number) for run in self.runs],
                self.source.at(end),
                self.heartbeat,
            )
            for number, end in enumerate(self._read_by)
        ]

    @property
    def autoencoders(self) -> list[Autoencoder]:
        """Return all autoencoders, run by run."""
        return [autoencoder for run in self.runs for autoencoder in run.autoencoders]

    @property
    def fishers(self) -> list[Fisher]:
        """Return the form, the estimator and the scope of the Fisher sums for each autoencoder."""
        return [run.fisher for run in self.runs for _ in run.autoencoders]

    def by_run(self, items: Sequence[Item]) -> list[list[Item]]:
        """Return the findings on each autoencoder, run by run."""
        rest = iter(items)
        return [[next(rest) for _ in run.autoencoders] for run in self.runs]

    def held_out(self, samples: int, batch_size: int, label: str) -> Iterator[Batch]:
        """Yield held-out vectors with a heartbeat before each batch, and show the progress as `label`."""
        progress, count = Progress(label, samples, self.source.unit), 0
        for batch in self.beating(self.source.held_out(samples, batch_size)):
            yield batch
            count += len(batch.inputs)
            progress.advance(len(batch.inputs))
        progress.close()
        found = self.source.held_out_found
        self.found_samples = max(self.found_samples or 0, count if found is None else found)

    def each(self, label: str) -> Iterator[Autoencoder]:
        """Yield every autoencoder with a heartbeat before it, and show the progress as `label`."""
        progress = Progress(label, len(self.autoencoders), "dictionaries")
        for autoencoder in self.beating(self.autoencoders):
            yield autoencoder
            progress.advance(1)
        progress.close()

    def beating(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, with a heartbeat after each has arrived."""
        for item in items:
            self.heartbeat()
            yield item

    def keep(self, found: Sequence[object]) -> None:
        """Keep an evaluation's findings on each autoencoder for later evaluations, under the objects' type."""
        self._found[type(found[0])] = list(found)

    def found(self, kind: type[Item]) -> list[Item] | None:
        """Return the findings of this type that an earlier evaluation kept, one per autoencoder; None without any."""
        return self._found.get(kind)

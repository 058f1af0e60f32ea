"""An evaluation by ablating latents: the settings that SCR and TPP share, and how their scores become numbers."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from fsae.evaluation.downstream.probe_ablation import (
    NAMED,
    Score,
    Task,
    ablated_scores,
    ablation_numbers,
    by_task,
)
from fsae.evaluation.downstream.text_activations import Reading
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.subject import Subject
from fsae.ranges import COUNT, SEED, between


@dataclass(frozen=True, kw_only=True)
class AblationEvaluation(Evaluation, group="eval"):
    """An evaluation that ablates latents and scores probes of mean activations before and after.

    Attributes:
        data: where the texts come from: "hub" for data sets by name, or another choice.
        sets: names of data sets; empty for all.
        path: for data=hub a folder with copies of the data sets, or null.
        n: numbers of ablated latents.
        train, test: rows of a probe.
        text_tokens: tokens of a text that are read, the first ones.
        repeats: draws of rows and probes; the noise is over them.
        seed: of rows, probes and control.
    """

    data: Enum
    sets: list[str] = field(default_factory=list)
    path: str | None = None
    n: list[int] = field(default_factory=lambda: list(NAMED), metadata=between(least=1, most=10**6))
    train: int = field(default=400, metadata=between(least=4, most=10**7))
    test: int = field(default=200, metadata=between(least=4, most=10**7))
    text_tokens: int = field(default=48, metadata=COUNT)
    repeats: int = field(default=3, metadata=between(least=1, most=1000))
    seed: int = field(default=0, metadata=SEED)

    def __post_init__(self):
        super().__post_init__()
        group = self._group
        if not self.n:
            raise ValueError(f"{group}.n is empty; name a number of latents, as in {group}.n=[10,20]")
        if unknown := sorted(set(self.sets) - set(self.known_sets)):
            raise ValueError(
                f"{group}.sets has {unknown[0]!r}; with {group}.data={self.data.name} the sets are "
                f"{', '.join(self.known_sets)}"
            )
        if self.path is not None and self.data.name != "hub":
            raise ValueError(f"{group}.path is {self.path!r}, which is for {group}.data=hub; set it to null")

    @property
    @abstractmethod
    def known_sets(self) -> Sequence[str]:
        """The names of the data sets of `data`."""

    @property
    def chosen_sets(self) -> Sequence[str]:
        """The names of the data sets that are measured."""
        return self.sets or self.known_sets

    def measured(
        self, subject: Subject, tasks: Sequence[Task], score: Score, name: str, content: str
    ) -> list[Measured]:
        """Return every autoencoder's numbers, and its scores of each task as content of that name."""
        found = ablated_scores(subject, tasks, score, Reading(tokens=self.text_tokens), self.seed)
        numbers = subject.by_run([ablation_numbers(name, self.n, each) for each in found])
        of_tasks = subject.by_run([by_task(tasks, self.n, each) for each in found])
        return [Measured(own, content={content: each}) for own, each in zip(numbers, of_tasks, strict=True)]

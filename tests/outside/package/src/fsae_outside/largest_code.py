"""The largest code, as an evaluation."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.subject import Subject
from fsae.outputs.results import Meaning
from fsae.ranges import COUNT


@dataclass(frozen=True, kw_only=True)
class LargestCode(Evaluation):
    """The largest code over held-out vectors.

    Attributes:
        samples: number of held-out vectors.
    """

    samples: int = field(default=512, metadata=COUNT)

    meanings: ClassVar[dict[str, Meaning]] = {"largest_code": Meaning("largest code over held-out vectors")}

    @property
    def held_out(self) -> int:
        return self.samples

    @torch.no_grad()
    def measure(self, subject: Subject) -> list[Measured]:
        largest = [0.0] * len(subject.autoencoders)
        for batch in subject.held_out(self.samples, self.samples, "largest code"):
            for number, autoencoder in enumerate(subject.autoencoders):
                largest[number] = max(largest[number], autoencoder(batch.inputs).codes.values.max().item())
        return [Measured([{"largest_code": each} for each in of_run]) for of_run in subject.by_run(largest)]

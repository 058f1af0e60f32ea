"""The largest error, as an evaluation."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.subject import Subject
from fsae.outputs.results import Better, Meaning
from fsae.ranges import COUNT


@dataclass(frozen=True, kw_only=True)
class LargestError(Evaluation):
    """The largest distance of a held-out vector from its reconstruction.

    Attributes:
        samples: number of held-out vectors.
    """

    samples: int = field(default=512, metadata=COUNT)

    meanings: ClassVar[dict[str, Meaning]] = {
        "largest_error": Meaning("largest distance of a vector from its reconstruction", better=Better.less)
    }

    @property
    def held_out(self) -> int:
        return self.samples

    @torch.no_grad()
    def measure(self, subject: Subject) -> list[Measured]:
        largest = [0.0] * len(subject.autoencoders)
        for batch in subject.held_out(self.samples, self.samples, "largest error"):
            for number, autoencoder in enumerate(subject.autoencoders):
                distances = (autoencoder(batch.inputs).reconstruction - batch.targets).norm(dim=1)
                largest[number] = max(largest[number], distances.max().item())
        return [Measured([{"largest_error": each} for each in of_run]) for of_run in subject.by_run(largest)]

"""An evaluation by labelled texts: the settings of the texts, of their splits and of the probes."""

from dataclasses import dataclass, field

from fsae.evaluation.downstream.probe import Fit
from fsae.evaluation.evaluation import Evaluation
from fsae.ranges import COUNT, SEED, between


@dataclass(frozen=True, kw_only=True)
class LabelledEvaluation(Evaluation, group="eval"):
    """An evaluation that fits probes to some labelled texts and scores them on others.

    Attributes:
        train, test: rows of a question, half of them of each class; fewer if its data set has fewer.
        fit: regularisation and solver of probes of some latents.
        text_tokens: tokens of a text that are read, at most.
        repeats: splits into training and test rows; the noise is over them.
        seed: of the rows, the splits and the control.
    """

    train: int = field(default=256, metadata=between(least=4, most=10**9))
    test: int = field(default=200, metadata=between(least=2, most=10**9))
    fit: Fit = Fit.l1
    text_tokens: int = field(default=64, metadata=COUNT)
    repeats: int = field(default=3, metadata=between(least=1, most=1000))
    seed: int = field(default=0, metadata=SEED)

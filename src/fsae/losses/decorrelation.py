"""The covariance of codes as a penalty."""

from dataclasses import dataclass
from typing import ClassVar

from fsae.autoencoders.record import ForwardRecord
from fsae.losses.fisher import FisherEstimator, covariance_sums
from fsae.losses.term import LossTerm, Moment, TermValue


@dataclass(frozen=True, kw_only=True)
class Decorrelation(LossTerm):
    """The off-diagonal sum over the codes' covariance matrix, sum_{i != j} C_ij^2: twice DeCov (arXiv 1511.06068).

    C = (1/B) sum_b (f_b - mean)(f_b - mean)^T, over the batch. It is computed as the Fisher penalty is, from the
    samples' Gram matrix. The Fisher penalty's form `correlation` differs by the norms of columns: here latents of large
    codes count more, and smaller codes lower the value.

    Attributes:
        estimator: the batch's own value, which is positive even for independent latents, or the population's without
            bias.
    """

    estimator: FisherEstimator = FisherEstimator.unbiased

    of_codes: ClassVar[bool] = True

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        return TermValue(covariance_sums(record.codes, self.estimator).off_diagonal)

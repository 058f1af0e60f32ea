"""The share of the variance that lies in a few vectors."""

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.evaluation.reconstruction import ReconstructionMetric

# One vector in this many is in the tail, and at most `MOST` vectors are.
ONE_IN = 1000
MOST = 1024


class TailMetric:
    """The share of the held-out variance in the vectors with the largest norms.

    top_variance_share: sum_{b in T} |x_b - mean(x)|^2 / sum_b |x_b - mean(x)|^2, T the 0.1 % of the vectors with the
        largest norms (at least one vector, at most `MOST`). 0.001 if all deviations are alike. Above 0.1 or 0.2,
        the fraction of variance unexplained mainly measures the reconstruction of these few vectors.
    """

    def __init__(self) -> None:
        self._largest: Float[Tensor, "largest d"] | None = None

    def update(self, vectors: Float[Tensor, "batch d"]) -> None:
        both = vectors if self._largest is None else torch.cat([self._largest, vectors])
        norms = both.float().norm(dim=1)
        self._largest = both[norms.topk(min(MOST, len(both))).indices]

    def compute(self, reconstruction: ReconstructionMetric) -> dict[str, float]:
        """Return the share, by the mean and the variance of the same vectors in `ReconstructionMetric`."""
        assert self._largest is not None
        tail = self._largest[: max(1, reconstruction.samples // ONE_IN)].double()
        deviation = (tail - reconstruction.mean_target.to(tail.device)).square().sum()
        return {"top_variance_share": (deviation / reconstruction.squared_deviation.to(tail.device)).item()}

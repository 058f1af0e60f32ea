"""The dependence of latents within a batch of held-out samples: the Fisher penalty and the correlation of codes."""

from dataclasses import replace

import torch
from torch import Tensor

from fsae.autoencoders.record import AffineMap, ForwardRecord
from fsae.losses.fisher import Fisher, FisherEstimator, FisherForm, FisherScope, FisherSums, fisher_sums


class FisherMetric:
    """Means over batches, all of one size B. These are statistics of a batch: their expectations depend on B.

    The first batch sets B. Batches of another size, such as the partial one at the end of a data set, are left out.

    fisher: sum_{i != j} F_ij^2 under the run's form, estimator and scope, in the units of the autoencoder that is
        evaluated.
    fisher_ratio: the mean of that sum over the mean of sum_i F_ii^2; free of the activations' unit.
    fisher_batch: B, without which the batch estimator's values cannot be compared.
    code_correlation: mean_{i != j} r_ij^2 over pairs of latents whose codes vary in the batch, r_ij their correlation
        coefficient over the batch. 0 if fewer than two vary.
    code_correlation_excess: code_correlation minus 1 / (B - 1), its mean for independent latents.
    """

    def __init__(self, fisher: Fisher, device: torch.device):
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self._fisher = fisher
        self._batch: int | None = None
        self._batches = 0
        self._off_diagonal = zero.clone()
        self._diagonal = zero.clone()
        self._correlation = zero.clone()

    def update(self, record: ForwardRecord) -> None:
        """Add one batch.

        Raises:
            ValueError: the first batch has one sample only.
        """
        batch = record.inputs.shape[0]
        if self._batch is None:
            if batch < 2:
                raise ValueError(
                    "there is a single vector to measure on; correlations between latents need at least two"
                )
            self._batch = batch
        if batch != self._batch:
            return
        record = _in_float64(record)
        sums = self._fisher.sums(record)
        self._off_diagonal += sums.off_diagonal
        self._diagonal += sums.diagonal
        of_pairs = FisherForm.correlation, FisherEstimator.batch, FisherScope.all
        if (self._fisher.form, self._fisher.estimator, self._fisher.scope) != of_pairs:
            sums = fisher_sums(record, *of_pairs)
        self._correlation += _mean_squared_correlation(sums, batch)
        self._batches += 1

    def compute(self) -> dict[str, float]:
        assert self._batch is not None
        correlation = (self._correlation / self._batches).item()
        return {
            "fisher": (self._off_diagonal / self._batches).item(),
            "fisher_ratio": FisherSums(self._off_diagonal, self._diagonal).ratio.item(),
            "fisher_batch": float(self._batch),
            "code_correlation": correlation,
            "code_correlation_excess": correlation - 1 / (self._batch - 1),
        }


def _mean_squared_correlation(sums: FisherSums, batch: int) -> Tensor:
    """Return sum_{i != j} r_ij^2 / (n (n - 1)), from the sums over F = r / B; r_ii is 1 for the n latents that vary."""
    varying = (sums.diagonal * batch**2).round()
    pairs = varying * (varying - 1)
    return torch.where(pairs > 0, sums.off_diagonal * batch**2 / pairs, 0.0)


def _in_float64(record: ForwardRecord) -> ForwardRecord:
    """Return the record that the Fisher sums read, in float64.

    The off-diagonal is a difference of sums of fourth powers over all pairs of samples, and raw activations with norms
    of 1e4 and more are common.
    """
    pre = record.pre_activations
    if pre is not None:
        pre = AffineMap(pre.centred.double(), pre.weight.double(), pre.bias.double())
    return replace(
        record,
        inputs=record.inputs.double(),
        targets=record.wanted.double(),
        pre_activations=pre,
        codes=record.codes.map(Tensor.double),
        reconstruction=record.reconstruction.double(),
        W_dec=record.W_dec.double(),
    )

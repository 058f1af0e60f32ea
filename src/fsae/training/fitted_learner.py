"""Fitting without gradients: k-means by mini-batches, then each cell's principal components from its second moments."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.fitted import FittedAutoencoder
from fsae.autoencoders.layout import Factor
from fsae.autoencoders.record import ForwardRecord
from fsae.losses.objective import Objective
from fsae.sources.source import Partners
from fsae.training.learner import Learner
from fsae.training.measures import batch_measures
from fsae.training.resample import Reinitialisation
from fsae.training.settings import FitSettings

# Variance along a direction, relative to a cell's moments, below which it is only rounding of sums in float64.
_ROUNDING = 1e-12


class FittedLearner(Learner[FittedAutoencoder, FitSettings]):
    """An autoencoder that is fitted batch by batch, on the CPU.

    First the centres, by Sculley's mini-batch k-means (2010) as scikit-learn has it: each centre is the mean of all
    samples that were ever assigned to it. In the first half of these steps, a centre with very few samples is placed at
    a new sample; in the second half the centres settle. Then the centres stay fixed, and the learner sums up each
    cell's samples in float64: their number, their sum and their second moments. In the last step the cell gets the
    affine space that is best for these samples, through their mean along the leading eigenvectors of their covariance;
    it has no more components than the samples span, and the others stay zero. Until then a cell has only its centre.
    Memory is cells x (d_in + 1)^2 numbers, for any number of samples.

    Args:
        autoencoder: all weights are zero at the beginning.
        objective: is measured only; the learner minimises the squared error.
        settings: the length of the fit.
        scale: the factor by which raw targets were multiplied, or one per dimension.
        seed: of the first centres, of centres that are placed at a new sample, and of other random numbers.
    """

    remedy = "check the source for vectors that are not finite or extremely large"

    def __init__(
        self, autoencoder: FittedAutoencoder, objective: Objective, settings: FitSettings, scale: Factor, seed: int
    ):
        # Slow to import.
        from sklearn.cluster import MiniBatchKMeans

        super().__init__(autoencoder, objective, settings, scale, seed)
        self._kmeans = MiniBatchKMeans(autoencoder.cells, random_state=seed % 2**32, compute_labels=False)
        self._centre_steps = settings.steps
        if autoencoder.rank > 0:
            self._centre_steps = min(max(1, round(settings.centre_fraction * settings.steps)), settings.steps - 1)
        # Of (x - c_k, 1): the last row is the samples' sum and number.
        self._moments: Float[Tensor, "cells d_in_plus_1 d_in_plus_1"] | None = None

    @torch.no_grad()
    def backward(
        self, x: Tensor, step: int, targets: Tensor | None = None, partners: Partners | None = None
    ) -> ForwardRecord:
        """Fit the batch, then measure it and return its record."""
        self._fit((x if targets is None else targets).cpu().double(), step)
        record = self.with_partners(self.autoencoder(x, sparse=True, targets=targets), partners, sparse=True)
        losses = self.objective(record, self.moment(step), measure_all=self.settings.logs_after(step))
        self._remember(losses.parts | batch_measures(record, self.scale))
        return record

    def update(self, step: int) -> None:
        """Do nothing: `backward` has fitted the batch."""

    def finish(self, record: ForwardRecord, step: int) -> None:
        self.dead.update(record.codes)

    def reinitialise(self, record: ForwardRecord, step: int, when: Reinitialisation) -> int:
        return 0

    def _fit(self, vectors: Float[Tensor, "batch d_in"], step: int) -> None:
        if step < self._centre_steps:
            if 2 * step >= self._centre_steps:
                self._kmeans.reassignment_ratio = 0.0
            self._kmeans.partial_fit(vectors.numpy())
            self.autoencoder.set_weights(self._centres.to(self.autoencoder.W_dec))
            return
        self._sum_up(vectors)
        if step + 1 == self.settings.steps:
            components, means = self._best_spaces()
            weights = self.autoencoder.W_dec
            self.autoencoder.set_weights(self._centres.to(weights), components.to(weights), means.to(weights))
            # The earlier measures are of the centres alone.
            self._sums, self._counts = {}, {}

    def _sum_up(self, vectors: Float[Tensor, "batch d_in"]) -> None:
        centres = self._centres
        if self._moments is None:
            cells, d_in = centres.shape
            self._moments = torch.zeros(cells, d_in + 1, d_in + 1, dtype=torch.float64)
        nearest = (vectors @ centres.T - centres.square().sum(1) / 2).argmax(1)
        order = torch.argsort(nearest, stable=True)
        found, sizes = torch.unique_consecutive(nearest[order], return_counts=True)
        differences = torch.nn.functional.pad(vectors - centres[nearest], (0, 1), value=1.0)[order]
        for cell, of_cell in zip(found.tolist(), differences.split(sizes.tolist()), strict=True):
            self._moments[cell].addmm_(of_cell.T, of_cell)

    def _best_spaces(self) -> tuple[Float[Tensor, "cells rank d_in"], Float[Tensor, "cells d_in"]]:
        """Return each cell's components and mean; the mean is the centre if the cell has no sample."""
        assert self._moments is not None
        rank, means = self.autoencoder.rank, self._centres.clone()
        components = means.new_zeros(len(means), rank, means.shape[1])
        for mean, rows, moments in zip(means, components, self._moments, strict=True):
            shift, squares = moments[-1, :-1] / moments[-1, -1].clamp_min(1), moments[:-1, :-1]
            values, vectors = torch.linalg.eigh(squares - torch.outer(moments[-1, :-1], shift))
            # Eigenvalues are in ascending order: the last ones are the leading ones.
            spanned = min(rank, int((values > _ROUNDING * squares.trace()).sum()))
            rows[:spanned] = vectors.T.flip(0)[:spanned]
            mean += shift
        return components, means

    @property
    def _centres(self) -> Float[Tensor, "cells d_in"]:
        return torch.from_numpy(self._kmeans.cluster_centers_)

    def state_dict(self) -> dict[str, Any]:
        # All attributes that fitting added to the estimator's own settings.
        fitted = {name: _plain(each) for name, each in vars(self._kmeans).items() if name not in self._settings}
        return super().state_dict() | {"kmeans": fitted, "moments": self._moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._moments = state["moments"]
        for name, each in state["kmeans"].items():
            setattr(self._kmeans, name, _revived(each))

    @property
    def _settings(self) -> dict[str, Any]:
        return self._kmeans.get_params(deep=False)


def _plain(value: Any) -> Any:
    """Return a value in the form in which a checkpoint holds it."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.random.RandomState):
        state = value.get_state(legacy=False)
        return state | {"state": state["state"] | {"key": torch.from_numpy(state["state"]["key"].astype(np.int64))}}
    return value.item() if isinstance(value, np.generic) else value


def _revived(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy().copy()
    if isinstance(value, dict):
        generator = np.random.RandomState()
        generator.set_state(
            value | {"state": value["state"] | {"key": value["state"]["key"].numpy().astype(np.uint32)}}
        )
        return generator
    return value

"""Fitting without gradients: k-means by mini-batches, then each cell's principal components from its second moments."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.base import ForwardRecord
from fsae.autoencoders.local_pca import PCA, LocalPCA
from fsae.losses.objective import Objective
from fsae.losses.term import Moment
from fsae.training.learner import Learner
from fsae.training.measures import batch_measures
from fsae.training.reinitialisation import Reinitialisation
from fsae.training.settings import FitSettings


class FittedMember(Learner[LocalPCA | PCA, FitSettings]):
    """An autoencoder that is fitted batch by batch, on the CPU.

    First the centres, by Sculley's mini-batch k-means (2010) as scikit-learn has it: each centre is the mean of all
    that was ever assigned to it, and one that gets next to nothing starts over at a sample. Then, with the centres
    where they are, S_k = sum (x - c_k)(x - c_k)' over the samples of each cell in float64, whose leading eigenvectors
    are the best components through c_k. They are found in the last step, and zero before it. What is held is
    cells x d_in^2 numbers, however many samples come.

    Args:
        autoencoder: zero.
        objective: is measured, and not what is minimised: that is the squared error.
        settings: for how long.
        scale: what raw activations are multiplied by before they come here.
        seed: of the first centres, and of centres that start over.
    """

    remedy = "the source's vectors are to blame"

    def __init__(
        self, autoencoder: LocalPCA | PCA, objective: Objective, settings: FitSettings, scale: float, seed: int
    ):
        # Slow to import.
        from sklearn.cluster import MiniBatchKMeans

        super().__init__(autoencoder, objective, settings, scale)
        self._kmeans = MiniBatchKMeans(autoencoder.cells, random_state=seed % 2**32, compute_labels=False)
        self._centre_steps = settings.steps
        if autoencoder.rank > 0:
            self._centre_steps = min(max(1, round(settings.centres * settings.steps)), settings.steps - 1)
        self._moments: Float[Tensor, "cells d_in d_in"] | None = None

    @torch.no_grad()
    def backward(self, x: Tensor, step: int, targets: Tensor | None = None) -> ForwardRecord:
        """Fit the batch; what is measured and returned comes after."""
        self._fit((x if targets is None else targets).cpu().double(), step)
        record = self.autoencoder(x, sparse=True, targets=targets)
        progress, measure_all = step / self.settings.steps, self.settings.logs_after(step)
        losses = self.objective(record, Moment(self.dead.indices), progress, measure_all)
        self._remember(losses.parts | batch_measures(record, self.scale))
        return record

    def update(self, step: int) -> None:
        """Nothing is left to do."""

    def finish(self, record: ForwardRecord, step: int) -> None:
        self.dead.update(record.codes)

    def start_over(self, record: ForwardRecord, step: int, when: Reinitialisation) -> int:
        return 0

    def _fit(self, vectors: Float[Tensor, "batch d_in"], step: int) -> None:
        if step < self._centre_steps:
            self._kmeans.partial_fit(vectors.numpy())
            self.autoencoder.place(self._centres.to(self.autoencoder.W_dec))
            return
        centres = self._centres
        if self._moments is None:
            cells, d_in = centres.shape
            self._moments = torch.zeros(cells, d_in, d_in, dtype=torch.float64)
        nearest = (vectors @ centres.T - centres.square().sum(1) / 2).argmax(1)
        order = torch.argsort(nearest, stable=True)
        found, sizes = torch.unique_consecutive(nearest[order], return_counts=True)
        differences = (vectors - centres[nearest])[order].split(sizes.tolist())
        for cell, of_cell in zip(found.tolist(), differences, strict=True):
            self._moments[cell].addmm_(of_cell.T, of_cell)
        if step + 1 == self.settings.steps:
            weights, rank = self.autoencoder.W_dec, self.autoencoder.rank
            # Eigenvalues rise: the last ones are the leading ones.
            components = [torch.linalg.eigh(each).eigenvectors.T.flip(0)[:rank] for each in self._moments]
            self.autoencoder.place(centres.to(weights), torch.stack(components).to(weights))

    @property
    def _centres(self) -> Float[Tensor, "cells d_in"]:
        return torch.from_numpy(self._kmeans.cluster_centers_)

    def state_dict(self) -> dict[str, Any]:
        # All that fitting added to the estimator's own settings.
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
    """As a checkpoint holds it."""
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

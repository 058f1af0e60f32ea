"""Fitting: it finds what is found on all data at once, resumes bit for bit and holds what it says it holds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import decomposition
from sklearn.cluster import KMeans

from fsae.autoencoders.fitted import FittedSettings
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.local_pca import KMeansSettings, LocalPCA, LocalPCASettings
from fsae.autoencoders.pca import PCASettings
from fsae.losses.objective import Objective
from fsae.losses.reconstruction import SquaredError
from fsae.training.fitted_learner import FittedLearner
from fsae.training.settings import FitSettings
from tests.architectures import FITTED
from tests.streams import D_IN
from tests.training.runs import BATCH, NEVER, STEPS, LoneRun, differences, logged, saved, training_run


def fit(steps: int = STEPS, centres: float = 0.5) -> FitSettings:
    return FitSettings(
        samples=steps * BATCH, batch_size=BATCH, log_every=5, checkpoint_seconds=NEVER, centre_fraction=centres
    )


def member(arch: FittedSettings, settings: FitSettings, d_in: int = D_IN, scale: float = 1.0) -> FittedLearner:
    autoencoder = arch.build(d_in, torch.Generator())
    return FittedLearner(autoencoder, Objective({"reconstruction": SquaredError()}), settings, scale, seed=3)


def fitted(arch: FittedSettings, data: torch.Tensor, settings: FitSettings) -> FittedLearner:
    found = member(arch, settings, data.shape[1])
    for step in range(settings.steps):
        begin = step * BATCH % len(data)
        found.step(data[begin : begin + BATCH], step)
    return found


def clusters(count: int) -> torch.Tensor:
    """Three far apart, each long in a direction of its own."""
    generator = torch.Generator().manual_seed(1)
    places = torch.randint(3, (count,), generator=generator)
    spread = torch.full((3, 4), 0.05) + torch.eye(3, 4)
    return 20 * torch.eye(4)[1:][places] + torch.randn(count, 4, generator=generator) * spread[places]


def run(arch: str, folder: Path, stop_at: int | None = None) -> LoneRun:
    settings = fit()
    return training_run(arch, folder, settings, stop_at, trained=member(FITTED[arch], settings))


def test_pca_is_that_of_all_data_at_once():
    data = clusters(10 * BATCH)
    # Ten steps for the mean of all, ten more for the second moments of all.
    autoencoder = fitted(PCASettings(d_sae=2), data, fit(20)).autoencoder
    wanted = decomposition.PCA(2).fit(data.double().numpy())
    torch.testing.assert_close(autoencoder.b_dec.double(), torch.from_numpy(wanted.mean_), atol=1e-5, rtol=1e-5)
    projected = wanted.inverse_transform(wanted.transform(data.double().numpy()))
    torch.testing.assert_close(
        autoencoder(data).reconstruction.double(), torch.from_numpy(projected), atol=1e-4, rtol=1e-4
    )


def test_k_means_finds_clusters_as_full_k_means_does():
    data = clusters(10 * BATCH)
    record = fitted(KMeansSettings(d_sae=3), data, fit(40)).autoencoder(data)
    wanted = -KMeans(3, random_state=0).fit(data.numpy()).score(data.numpy()) / len(data)
    assert record.error.square().sum(1).mean().item() == pytest.approx(wanted, rel=0.02)


def test_mini_batch_k_means_comes_near_to_full_k_means_if_cells_meet():
    data = torch.randn(10 * BATCH, 4, generator=torch.Generator().manual_seed(2))
    record = fitted(KMeansSettings(d_sae=12), data, fit(400)).autoencoder(data)
    # Running means still have a share of what was nearest early on: 6 % more error here.
    wanted = -KMeans(12, random_state=0).fit(data.numpy()).score(data.numpy()) / len(data)
    assert record.error.square().sum(1).mean().item() < 1.1 * wanted


def test_each_cell_has_its_own_direction():
    data = clusters(10 * BATCH)
    autoencoder = fitted(LocalPCASettings(d_sae=6, rank=1), data, fit(40)).autoencoder
    # Of unit variance along one axis each and 0.05^2 along three others.
    assert autoencoder(data).error.square().sum(1).mean().item() == pytest.approx(3 * 0.05**2, rel=0.3)
    wider = fitted(KMeansSettings(d_sae=6), data, fit(40)).autoencoder
    assert wider(data).error.square().sum() > autoencoder(data).error.square().sum()


def best_error(x: np.ndarray, cell: np.ndarray, rank: int) -> float:
    """Squared error of the best affine space of so many dimensions in each cell, by the singular values."""
    error = 0.0
    for each in np.unique(cell):
        of_cell = x[cell == each]
        error += (np.linalg.svd(of_cell - of_cell.mean(0), compute_uv=False)[rank:] ** 2).sum()
    return error


@pytest.mark.parametrize("rank", [1, 2])
def test_it_is_the_best_for_its_cells(rank: int):
    generator = torch.Generator().manual_seed(4)
    # Nothing that k-means would come to rest on: centres are off their cells' means.
    data = torch.randn(10 * BATCH, 6, generator=generator) + 3.0
    # Two batches for the centres, and then all data once.
    found = fitted(LocalPCASettings(d_sae=4 * (1 + rank), rank=rank), data, fit(12, 0.17)).autoencoder.double()
    assert isinstance(found, LocalPCA)
    x = data.double()
    cell = torch.cdist(x, found.centres).argmin(1)
    assert (found.centres - found.means).norm(dim=1).min() > 0.01
    error = found(x).error.square().sum().item()
    assert error == pytest.approx(best_error(x.numpy(), cell.numpy(), rank), rel=1e-5)


def test_a_cell_has_no_more_components_than_its_samples_span():
    # Far apart: one point alone, two points, and a line through many; each seen in every batch.
    line = torch.linspace(-1, 1, BATCH - 3).unsqueeze(1) * torch.tensor([[0.6, 0.0, 0.8]])
    points = torch.tensor([[100.0, 0.0, 0.0], [0.0, 100.0, 0.0], [0.0, 100.0, 1.0]])
    data = torch.cat([points, line])
    found = fitted(LocalPCASettings(d_sae=12, rank=3), data, fit(40)).autoencoder
    assert isinstance(found, LocalPCA)
    norms = found.components.norm(dim=2)
    cells = torch.cdist(data[[0, 1, 3]], found.centres).argmin(1)
    torch.testing.assert_close(norms[cells], torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 0, 0]]))
    assert found(data).error.abs().max() < 1e-4


def test_an_empty_cell_keeps_its_centre():
    found = member(LocalPCASettings(d_sae=6, rank=1), fit(), d_in=4)
    data = clusters(10 * BATCH)
    found._fit(data.double(), 0)
    emptied = data[torch.cdist(data.double(), found._centres).argmin(1) != 1]
    found._fit(emptied.double(), STEPS - 1)
    autoencoder = found.autoencoder
    assert isinstance(autoencoder, LocalPCA)
    assert torch.equal(autoencoder.means[1], autoencoder.centres[1])
    assert autoencoder.components.norm(dim=2).squeeze(1).tolist() == pytest.approx([1.0, 0.0, 1.0])


def test_the_last_measures_are_of_the_components(tmp_path: Path):
    # One interval, of whose 27 steps all but one are of the mean alone.
    settings = replace(fit(), log_every=STEPS)
    trained = training_run("pca", tmp_path, settings, trained=member(FITTED["pca"], settings))
    trained.train()
    ((_, metrics),) = logged(tmp_path)
    assert metrics["train/fvu"] == trained.fvu_of_each[0] < 0.8


def test_centres_settle_in_the_second_half_of_their_steps():
    # One of two centres gets no sample. Until the middle it moves to a sample now and then, afterwards it stays.
    found = member(KMeansSettings(d_sae=2), fit(40), d_in=1)
    generator = torch.Generator().manual_seed(2)
    found._fit(torch.tensor([[0.0], [100.0]]).double(), 0)
    moved = []
    for step in range(1, 40):
        before = found._centres.clone()
        found._fit(torch.randn(BATCH, 1, generator=generator).double(), step)
        moved.append((step, bool(((found._centres - before).abs() > 50).any())))
    assert any(jumped for step, jumped in moved if step < 20)
    found = member(KMeansSettings(d_sae=2), fit(40), d_in=1)
    found._fit(torch.tensor([[0.0], [100.0]]).double(), 0)
    for step in range(20, 40):
        found._fit(torch.randn(BATCH, 1, generator=generator).double(), step)
    assert float(found._centres.max()) == 100


@pytest.mark.parametrize("arch", list(FITTED))
def test_an_interrupted_run_continues_bit_for_bit(arch: str, tmp_path: Path):
    run(arch, tmp_path / "whole").train()
    # Among the centres' steps, and among the components'.
    for stop_at in (7, 20):
        with pytest.raises(BaseException, match=r"SIGTERM"):
            run(arch, tmp_path / "halved", stop_at).train()
    run(arch, tmp_path / "halved").train()
    assert differences(saved(tmp_path / "whole"), saved(tmp_path / "halved")) == []
    assert logged(tmp_path / "whole") == logged(tmp_path / "halved")


def test_a_fitted_state_does_not_grow_with_the_samples():
    sizes = []
    for steps in (6, 60):
        state = fitted(LocalPCASettings(d_sae=6, rank=1), clusters(10 * BATCH), fit(steps)).state_dict()
        assert state["moments"].shape == (3, 5, 5)
        sizes.append(sum(each.numel() for each in state["kmeans"].values() if isinstance(each, torch.Tensor)))
    assert sizes[0] == sizes[1]


def test_components_are_sought_after_the_centres():
    state = fitted(LocalPCASettings(d_sae=6, rank=1), clusters(10 * BATCH), fit(20, centres=0.25))
    assert state.state_dict()["kmeans"]["n_steps_"] == 5


def test_a_batch_too_small_for_the_centres_is_refused():
    with pytest.raises(ValueError, match=r"trainer.batch_size is 16, but the first batch must supply 17 centres"):
        fit().check_ends(KMeansSettings(d_sae=17), Ends.of(40))
    with pytest.raises(ValueError, match=r"is a single batch; centres and components need one each"):
        fit(1).check_ends(LocalPCASettings(d_sae=2, rank=1), Ends.of(40))
    with pytest.raises(ValueError, match=r"lower arch.d_sae, or raise arch.rank, for fewer cells"):
        fit().check_ends(LocalPCASettings(d_sae=34, rank=1), Ends.of(40))
    fit(1).check_ends(KMeansSettings(d_sae=16), Ends.of(40))


def test_its_state_is_of_plain_numbers_and_tensors():
    state = fitted(KMeansSettings(d_sae=3), clusters(10 * BATCH), fit(5)).state_dict()["kmeans"]
    assert not any(isinstance(each, np.ndarray | np.random.RandomState) for each in state.values())

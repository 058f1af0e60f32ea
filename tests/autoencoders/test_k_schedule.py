"""The schedule of k: a straight line in training, k in evaluation, and the same numbers after a stop."""

from pathlib import Path

import pytest
import torch

from fsae.autoencoders.topk import TopKSettings
from fsae.training.interruption import Interrupted
from tests.architectures import samples
from tests.streams import D_IN
from tests.training.runs import STEPS, adam, differences, logged, member, saved, training_run

each_scheduled = pytest.mark.parametrize("arch", ["topk", "batch_topk", "abs_topk"])


def test_from_8_to_2_in_3_steps():
    settings = TopKSettings(k=2, k_start=8, k_until=0.75)
    assert [settings.k_at(step / 4) for step in range(5)] == [8, 6, 4, 2, 2]
    assert TopKSettings(k=2).k_at(0.0) == 2
    # It may rise, too.
    assert [TopKSettings(k=6, k_start=2, k_until=0.5).k_at(step / 4) for step in range(3)] == [2, 4, 6]


@each_scheduled
@pytest.mark.parametrize("sparse", [True, False])
def test_training_follows_it_and_evaluation_does_not(arch: str, sparse: bool):
    settings = adam(samples=4 * 16, log_every=1, resample_every=None, lr=1e-30)
    trained = member(arch, settings, d_sae=64, k=2, k_start=8, k_until=0.75)
    trained.sparse = sparse
    found = []
    for step in range(4):
        trained.sparse = sparse
        trained.step(samples(16, D_IN, seed=step, dtype=torch.float32), step)
        found.append(trained.read_interval()["l0"])
    assert found == [8, 6, 4, 2]
    trained.autoencoder.progress = 0.0
    if arch != "batch_topk":
        codes = trained.autoencoder.eval()(samples(5, D_IN, dtype=torch.float32), sparse).codes
        assert (codes.dense().count_nonzero(1) == 2).all()


@each_scheduled
def test_a_stopped_training_resumes_with_the_same_k(arch: str, tmp_path: Path):
    def train(folder: Path, stop_at: int | None = None) -> None:
        trained = member(arch, adam(), k_start=12, k_until=0.6)
        training_run(arch, folder, stop_at=stop_at, trained=trained).train()

    train(tmp_path / "whole")
    for step in (3, STEPS // 2):
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", step)
    train(tmp_path / "stopped")
    assert not differences(saved(tmp_path / "stopped"), saved(tmp_path / "whole"))
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")


def test_density_falls_with_k():
    settings = TopKSettings(d_sae=20, k=2, k_start=8, k_until=0.5)
    assert [settings.density(5, progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [0.4, 0.25, 0.1, 0.1]


def test_impossible_schedules_are_refused():
    with pytest.raises(ValueError, match=r"arch\.k_until is 0\.5, but without arch\.k_start .*; set arch\.k_start, or"):
        TopKSettings(k_until=0.5)
    with pytest.raises(ValueError, match=r"arch\.k_start is 21, more than the 20 latents"):
        TopKSettings(d_sae=20, k=2, k_start=21).check_width(5)

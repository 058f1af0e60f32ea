"""Trainings that free memory has no room for."""

from types import SimpleNamespace

import pytest
import torch

from fsae import memory
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.local_pca import KMeansSettings, LocalPCASettings
from fsae.autoencoders.topk import TopKSettings
from fsae.training.room import check_equations, check_moments, check_second_moments

CPU = torch.device("cpu")


def test_weights_and_moments_without_room_are_refused():
    check_moments([(TopKSettings(d_sae=24), Ends.of(6))] * 2, CPU)
    # 20 autoencoders x 2 x 6 x 2^28 weights, each with a gradient and two moments, 16 bytes: 1,030.8 GB.
    with pytest.raises(ValueError, match=r"weights of 20 autoencoders, .* take 1030\.8 GB, .* lower arch\.d_sae"):
        check_moments([(TopKSettings(d_sae=2**28), Ends.of(6))] * 20, CPU)


@pytest.mark.parametrize(("d_sae", "refused"), [(24, False), (2**20, True)])
def test_equations_without_room_are_refused(d_sae: int, refused: bool):
    wanted = [(TopKSettings(d_sae=d_sae), Ends.of(6))] * 2
    if not refused:
        check_equations(wanted, CPU)
        return
    # 4 x 8 bytes x 2^20 x (2^20 + 6) are 35,184.6 GB, twice.
    with pytest.raises(
        ValueError, match=r"equations of 2 decoders \(d_sae 1,048,576\) take 70369\.1 GB, .* lower arch"
    ):
        check_equations(wanted, CPU)


def test_second_moments_without_room_are_refused(monkeypatch: pytest.MonkeyPatch):
    cells = LocalPCASettings(d_sae=64, rank=1), Ends.of(99)
    # 32 cells of 8 x 100^2 bytes: 2.56 MB each time.
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=6e6))
    check_second_moments([cells, cells], CPU)
    with pytest.raises(ValueError, match=r"96 cells of width 99 take 0.0 GB, .* lower population.size or hydra"):
        check_second_moments([cells] * 3, CPU)
    # k-means has no second moments.
    check_second_moments([(KMeansSettings(d_sae=2_000_000), Ends.of(99))], CPU)

import pytest
import torch

from fsae.autoencoders.record import ForwardRecord
from fsae.evaluation.reconstruction import ReconstructionMetric
from fsae.evaluation.tail import MOST, TailMetric
from tests.architectures import build


def share_of(vectors: torch.Tensor, batch: int) -> float:
    autoencoder = build("standard", d_in=vectors.shape[1], dtype=torch.float32).eval()
    reconstruction, tail = ReconstructionMetric(vectors.shape[1], vectors.device), TailMetric()
    for part in vectors.split(batch):
        record = autoencoder(part)
        assert isinstance(record, ForwardRecord)
        reconstruction.update(record)
        tail.update(part)
    return tail.compute(reconstruction)["top_variance_share"]


def test_two_vectors_that_hold_the_variance_are_found_in_any_batch():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2500, 8, generator=generator)
    vectors[17] *= 300
    vectors[2100] *= 300
    deviation = (vectors.double() - vectors.double().mean(0)).square().sum(1)
    # 0.1 % of 2,500 are two.
    wanted = float(deviation[[17, 2100]].sum() / deviation.sum())
    assert wanted > 0.9
    for batch in (1000, 7, 2500):
        assert share_of(vectors, batch) == pytest.approx(wanted, rel=1e-9)


def test_alike_vectors_have_a_thousandth_of_the_variance_in_a_thousandth_of_them():
    angles = torch.linspace(0, 2 * torch.pi, 4001)[:-1]
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert share_of(circle, 512) == pytest.approx(0.001, rel=1e-3)


def test_fewer_than_a_thousand_vectors_have_a_tail_of_one():
    vectors = torch.tensor([[0.0], [1.0], [-1.0], [4.0], [-4.0], [0.0]])
    # The mean is 0, the squares sum up to 34.
    assert share_of(vectors, 4) == pytest.approx(16 / 34)


def test_the_tail_does_not_grow_beyond_its_limit():
    tail = TailMetric()
    for _ in range(3):
        tail.update(torch.randn(MOST, 2))
    assert tail._largest is not None
    assert len(tail._largest) == MOST

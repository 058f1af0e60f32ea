import pytest
import torch

from fsae.autoencoders.record import AffineMap, ForwardRecord
from fsae.evaluation.reconstruction import ReconstructionMetric
from fsae.sparse.codes import Codes
from tests.evaluation.records import CPU, record_of

IDENTITY = [[1.0, 0.0], [0.0, 1.0]]


def measured(*records: ForwardRecord) -> dict[str, float]:
    metric = ReconstructionMetric(records[0].inputs.shape[1], CPU)
    for record in records:
        metric.update(record)
    return metric.compute()


def reconstructed(x: torch.Tensor, x_hat: torch.Tensor) -> ForwardRecord:
    d_in = x.shape[1]
    nothing = AffineMap(x, torch.zeros(d_in, 1), torch.zeros(1))
    return ForwardRecord(x, nothing, Codes(torch.zeros(len(x), 1)), x_hat, torch.zeros(1, d_in), torch.zeros(d_in))


def test_by_hand_over_two_batches_of_different_size():
    metric = ReconstructionMetric(2, CPU)
    metric.update(record_of([[3, 4], [0, 2]], [[3, 0], [0, 1]], IDENTITY))
    metric.update(record_of([[6, 0]], [[6, 3]], IDENTITY))
    numbers = metric.compute()
    # Squared errors 16, 1 and 9.
    assert numbers["mse"] == pytest.approx(26 / 3)
    # The mean is (3, 2); squared deviations are 0 + 4, 9 + 0 and 9 + 4.
    assert metric.mean_target.tolist() == pytest.approx([3, 2])
    assert numbers["fvu"] == pytest.approx(26 / 26)
    # Norms 5, 2, 6 and of reconstructions 3, 1, sqrt(45).
    assert numbers["l2_ratio"] == pytest.approx((3 / 5 + 1 / 2 + 45**0.5 / 6) / 3)
    assert numbers["cosine"] == pytest.approx((9 / 15 + 1 + 36 / (6 * 45**0.5)) / 3)


def test_inputs_of_zero_have_no_ratio_and_no_direction_but_an_error():
    numbers = measured(record_of([[0, 0], [2, 0]], [[1, 0], [1, 0]], IDENTITY))
    assert numbers["l2_ratio"] == pytest.approx(1 / 2)
    assert numbers["cosine"] == pytest.approx(1)
    assert numbers["mse"] == pytest.approx((1 + 1) / 2)


def test_a_reconstruction_of_zero_points_nowhere():
    numbers = measured(record_of([[3, 4], [2, 0]], [[0, 0], [2, 0]], IDENTITY))
    assert numbers["cosine"] == pytest.approx((0 + 1) / 2)


@pytest.mark.parametrize("sizes", [[60], [1, 59], [7, 20, 33], [1] * 60])
def test_any_split_into_batches_gives_the_same_numbers(sizes):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator)
    x_hat = x + 0.3 * torch.randn(60, 4, generator=generator)
    whole = measured(reconstructed(x, x_hat))
    split = measured(*map(reconstructed, x.split(sizes), x_hat.split(sizes)))
    assert split == pytest.approx(whole, rel=1e-12)


def test_fvu_survives_a_mean_far_larger_than_the_deviations():
    generator = torch.Generator().manual_seed(0)
    deviations = torch.randint(-8, 9, (400, 3), generator=generator).double()
    # Integers below 2^24 are exact in float32; E|x|^2 - |E x|^2 in float32 would be off by thousands.
    x = (deviations + 1e7).float()
    errors = torch.randint(-1, 2, (400, 3), generator=generator).double()
    wanted = errors.square().sum() / (deviations - deviations.mean(0)).square().sum()
    got = measured(*map(reconstructed, x.split(64), (x + errors.float()).split(64)))
    assert got["fvu"] == pytest.approx(wanted.item(), rel=1e-12)


def test_a_reconstruction_by_the_mean_leaves_all_variance_unexplained():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)).double()
    assert measured(reconstructed(x, x.mean(0).expand_as(x)))["fvu"] == pytest.approx(1)
    perfect = measured(reconstructed(x, x))
    assert perfect["fvu"] == 0
    assert perfect["l2_ratio"] == pytest.approx(1)
    assert perfect["cosine"] == pytest.approx(1)

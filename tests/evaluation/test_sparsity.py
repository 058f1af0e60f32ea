import pytest
import torch

from fsae.evaluation.sparsity import SparsityMetric, density_histogram
from tests.architectures import build, each_architecture, samples
from tests.evaluation.records import CPU, record_of


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_by_hand_over_two_batches(sparse):
    W_dec = [[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]  # norms 5, 2, 1
    metric = SparsityMetric(3, CPU)
    metric.update(record_of([[0, 0], [0, 0]], [[0, -2, 0], [1, 3, 0]], W_dec, sparse=sparse))
    metric.update(record_of([[0, 0]], [[0, 0, 0]], W_dec, sparse=sparse))
    numbers = metric.compute()
    assert numbers["l0"] == pytest.approx((1 + 2 + 0) / 3)
    # Signed codes count by magnitude, each with its row's norm.
    assert numbers["l1"] == pytest.approx((2 * 2 + (1 * 5 + 3 * 2) + 0) / 3)
    assert numbers["dead_share"] == pytest.approx(1 / 3)
    assert metric.density.tolist() == pytest.approx([1 / 3, 2 / 3, 0])


def test_dense_is_more_than_a_tenth_of_the_samples():
    # Of ten samples latent 0 fires on one, latent 1 on two, latent 2 on all.
    codes = [[float(b == 0), float(b < 2), 1.0] for b in range(10)]
    metric = SparsityMetric(3, CPU)
    metric.update(record_of([[0.0]] * 10, codes, [[1.0]] * 3))
    assert metric.compute()["dense_share"] == pytest.approx(2 / 3)


@each_architecture
def test_sparse_codes_give_the_same_numbers(arch):
    autoencoder, x = build(arch).eval(), samples(40)
    frequencies, numbers = [], []
    for sparse in (False, True):
        metric = SparsityMetric(autoencoder.d_sae, CPU)
        for batch in x.split(16):
            with torch.no_grad():
                metric.update(autoencoder(batch, sparse))
        frequencies.append(metric.density)
        numbers.append(metric.compute())
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-12)
    assert torch.equal(*frequencies)
    assert 0 < numbers[0]["l0"] < autoencoder.d_sae


def test_the_histogram_counts_living_latents_by_the_logarithm_of_their_frequency():
    histogram = density_histogram(torch.tensor([0.0, 1e-3, 0.5, 0.5, 1.0]))
    edges, latents = histogram["log10_edges"], histogram["latents"]
    assert (len(edges), edges[0], edges[-1]) == (61, -6.0, 0.0)
    assert sum(latents) == 4
    # Bins of a tenth: log10(.5) is -.301 and a frequency of 1 is in the last one.
    assert (latents[29] + latents[30], latents[56], latents[59]) == (1, 2, 1)

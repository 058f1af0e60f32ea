import numpy as np
import pytest
from scipy.sparse import csr_array

from fsae.evaluation.downstream.k_sparse import KSparse, Protocol, difference_probe, residual_probe
from fsae.evaluation.downstream.splits import split

LABELS = np.array([0, 1] * 100)
SPLIT = split(LABELS, 140, 60, seed=0)


def planted(useful: int = 3, columns: int = 20) -> np.ndarray:
    """Codes of which column `useful` is the label, and the others are noise with zeros, larger than that column."""
    codes = np.maximum(5 * np.random.default_rng(0).normal(size=(len(LABELS), columns)), 0)
    codes[:, useful] = 0.1 * LABELS
    return codes


@pytest.mark.parametrize("sparse", [False, True])
def test_a_latent_that_is_the_label_is_found_by_its_difference_over_its_size(sparse: bool):
    codes = csr_array(planted()) if sparse else planted()
    probing = KSparse(counts=[1, 2, 50])
    (chosen, _), *_ = probing.probes(codes[SPLIT.train], SPLIT.labels)
    assert chosen.tolist() == [3]
    assert probing.of_latents(codes, LABELS, SPLIT) == pytest.approx([1, 1, 1], abs=0.02)


def test_the_plain_difference_prefers_large_codes():
    probing = KSparse(protocol=Protocol.saebench, counts=[1])
    ((chosen, _),) = probing.probes(planted()[SPLIT.train], SPLIT.labels)
    assert chosen.tolist() != [3]
    large = planted()
    large[:, 3] *= 1000
    assert probing.of_latents(large, LABELS, SPLIT) == [1.0]


def test_codes_without_the_label_are_at_chance():
    codes = planted()
    codes[:, 3] = 0
    scores = [KSparse(counts=[5]).of_latents(codes, LABELS, split(LABELS, 140, 60, seed))[0] for seed in range(8)]
    assert np.mean(scores) == pytest.approx(0.5, abs=0.06)


def test_neither_choice_nor_probe_sees_a_test_row():
    codes, spoilt = planted(), planted()
    spoilt[SPLIT.test] = 0
    probing = KSparse(counts=[4])
    ((first, one),) = probing.probes(codes[SPLIT.train], SPLIT.labels)
    ((second, two),) = probing.probes(spoilt[SPLIT.train], SPLIT.labels)
    assert first.tolist() == second.tolist()
    assert one.weights.tolist() == two.weights.tolist()
    assert probing.of_latents(spoilt, LABELS, SPLIT) == [0.5]


def test_probes_of_all_columns():
    vectors = np.random.default_rng(1).normal(size=(len(LABELS), 300))
    vectors[:, 7] += 6 * LABELS
    for protocol in Protocol:
        probing = KSparse(protocol=protocol, counts=[1])
        assert probing.of_all(vectors, LABELS, SPLIT, residual_probe)[0] > 0.9
        assert probing.of_all(vectors, LABELS, SPLIT, difference_probe)[0] > 0.85


def test_the_difference_of_means_has_its_threshold_half_way():
    probe = difference_probe(np.array([[0.0, 1], [0, 3], [4, 2], [6, 2]]), np.array([0, 0, 1, 1]))
    assert probe.weights.tolist() == [5, 0]
    assert probe.scores(np.array([[2.5, 9]])).tolist() == [0]

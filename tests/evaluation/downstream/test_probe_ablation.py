import numpy as np
import pytest
from scipy.sparse import csr_array

from fsae.evaluation.downstream.probe import Probe
from fsae.evaluation.downstream.probe_ablation import (
    DecodedTexts,
    ProbedRows,
    ProbeTraining,
    ablation_numbers,
    strongest,
    trained_probes,
)

# Four texts, two dimensions, three latents; the probe reads the first dimension.
CODES = np.array([[2.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 3.0], [0.0, 4.0, 1.0]])
DIRECTIONS = np.array([[1.0, 0.0], [0.5, 1.0], [-1.0, 2.0]])
VECTORS = CODES @ DIRECTIONS + np.array([0.25, 0.0])
LABELS = np.array([1, 1, 0, 0])
ROWS = ProbedRows(np.arange(4), np.arange(4), LABELS, LABELS)
PROBE = Probe(np.array([2.0, 0.0]), 1.0, 1.0, 0.5)


@pytest.fixture
def texts() -> DecodedTexts:
    return DecodedTexts(VECTORS, csr_array(CODES), DIRECTIONS)


def test_an_effect_is_the_difference_of_mean_codes_times_the_part_in_the_logit(texts: DecodedTexts):
    # Mean codes of the classes: (1, 0.5, 1) and (0.5, 2, 2), so they differ by (0.5, -1.5, -1).
    # A unit of code adds (2, 1, -2) to the logit.
    np.testing.assert_allclose(texts.effects(PROBE, ROWS, one_sided=False), [1, 1.5, 2])
    np.testing.assert_allclose(texts.effects(PROBE, ROWS, one_sided=True), [1, 0, 0])


def test_only_latents_of_a_positive_effect_are_chosen():
    assert strongest(np.array([1.0, -5.0, 3.0, 0.0]), 3).tolist() == [2, 0]
    assert strongest(np.array([1.0, 2.0, 3.0]), 2).tolist() == [2, 1]


def test_ablated_accuracies_are_those_of_decoded_texts(texts: DecodedTexts):
    order, expected = np.array([2, 0]), []
    for count in (0, 1, 2):
        kept = CODES.copy()
        kept[:, order[:count]] = 0
        # The error is what the codes do not explain of the activation.
        activations = kept @ DIRECTIONS + (VECTORS - CODES @ DIRECTIONS)
        expected.append(PROBE.accuracy(activations, LABELS))
    assert texts.accuracies(PROBE, ROWS, order, [0, 1, 2]).tolist() == expected
    assert len(set(expected)) > 1


def test_probes_find_directions_as_each_would_alone():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, size=(2, 300))
    vectors = generator.normal(size=(300, 4)) * 0.3
    vectors[:, 1:3] += 2 * labels.T - 1
    train, test = np.arange(200), np.arange(200, 300)
    rows = [ProbedRows(train, test, each[train], each[test]) for each in labels]
    training = ProbeTraining(learning_rate=0.02)
    probes = trained_probes(vectors, rows, [0, 1], training)
    for axis, (probe, own) in enumerate(zip(probes, rows, strict=True)):
        assert probe.accuracy(vectors[test], own.test_labels) > 0.9
        assert np.abs(probe.weights).argmax() == 1 + axis
    (alone,) = trained_probes(vectors, rows[1:], [1], training)
    np.testing.assert_allclose(alone.weights, probes[1].weights, atol=1e-6)


def test_numbers_are_means_over_tasks_and_their_noise_is_over_repeats():
    # Two tasks, two repeats, counts 2 and 3; 3 has no number of its own.
    scores = {"scr": [np.array([[0.1, 0], [0.3, 0]]), np.array([[0.5, 0], [0.3, 0]])]}
    found = ablation_numbers("scr", [2, 3], {"": scores, "random": scores})
    assert found.keys() == {"scr_n2", "scr_n2_noise", "scr_n2_random"}
    assert found["scr_n2"] == pytest.approx(0.3)
    # Per repeat the means are 0.3 and 0.3.
    assert found["scr_n2_noise"] == pytest.approx(0, abs=1e-12)

import numpy as np
import pytest
import torch

from fsae.evaluation.downstream.concept_detectors import (
    accuracy_at,
    auroc,
    best_latent,
    directions,
    text_scores,
    word_detector,
)
from fsae.evaluation.downstream.text_activations import TextActivations


def read_of(vectors: torch.Tensor, *lengths: int) -> TextActivations:
    count = len(vectors)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return TextActivations(vectors, torch.zeros(count, dtype=torch.long), torch.arange(count), starts)


def test_auroc_is_the_share_of_pairs_in_order():
    scores = np.array([[3.0, 0.0, 1.0], [1.0, 0.0, 1.0], [2.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    positive = np.array([True, True, False, False])
    # Pairs of the first column: 3 > 2, 3 > 0, 1 < 2, 1 > 0. The last one: 1 < 2, 1 > 0, twice.
    assert auroc(scores, positive).tolist() == [0.75, 0.5, 0.5]


def test_the_score_of_a_text_is_its_greatest_token():
    read = read_of(torch.tensor([[1.0, 0.0], [3.0, -1.0], [-2.0, 5.0]]), 2, 0, 1)
    # The text without a token has the least product of all.
    assert text_scores(read, np.eye(2)).tolist() == [[3.0, 0.0], [-2.0, -1.0], [-2.0, 5.0]]


def test_the_best_latent_is_chosen_on_training_texts():
    from scipy.sparse import csr_array

    pooled = csr_array(np.array([[0, 1, 2.0], [0, 0, 2], [9, 0, 2], [0, 1, 0]]))
    train = np.array([True, True, False, False])
    assert best_latent(pooled, train, np.array([True, False, True, False])) == 1


def test_the_threshold_is_of_the_training_texts():
    train = np.array([True] * 4 + [False] * 3)
    positive = np.array([True, True, False, False, True, True, False])
    scores = np.array([4.0, 3.0, 2.0, 1.0, 5.0, 2.5, 3.5])
    # The threshold is 3: one of two positives is found, and the other text is wrongly found.
    assert accuracy_at(scores, train, positive, ~train) == 0.25


def test_directions_find_a_planted_one():
    draw = torch.Generator().manual_seed(0)
    vectors = 0.1 * torch.randn(400, 5, generator=draw)
    # Positives differ among themselves only along the first dimension, along which they are shifted, too.
    vectors[:200, 0] += 2 + torch.randn(200, generator=draw)
    read = read_of(vectors, *[10] * 40)
    positive = np.arange(40) < 20
    found = directions(read, np.ones(40, bool), positive, seed=0)
    assert found.keys() == {"diffmean", "pca", "lat", "probe"}
    for vector in found.values():
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert vector[0] > 0.9
    again = directions(read, np.ones(40, bool), positive, seed=0)
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_words_detect_a_concept():
    scores = word_detector(["a cat", "the cat", "a dog", "the dog"], np.array([True, True, False, False]))
    one, other, unknown = scores(["cat", "dog", "bird"])
    assert one > unknown > other

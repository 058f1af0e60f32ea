from collections.abc import Sequence

import numpy as np
import pytest
from scipy.sparse import csr_array

from fsae.evaluation.downstream.node_types import best_latents, of_identity, purities

# Eight tokens; the first four choose, the last four score.
FIRST = np.arange(8) < 4
# One type: tokens 0, 1, 4 and 5.
TYPES = csr_array(np.array([[1], [1], [0], [0], [1], [1], [0], [0]], float))


def codes(*columns: Sequence[float]) -> csr_array:
    return csr_array(np.array(columns, np.float32).T)


def test_the_best_latent_is_chosen_on_one_half_and_scored_on_the_other():
    perfect_first = [1, 1, 0, 0, 1, 0, 1, 0]
    perfect_second = [1, 0, 1, 0, 1, 1, 0, 0]
    found = best_latents(codes(perfect_second, perfect_first), TYPES, FIRST)
    assert found.latents.tolist() == [1]
    # One of two found, and one that is not of the type: 2 * 1 / (2 + 2).
    assert found.f1.tolist() == [0.5]


def test_a_threshold_may_detect_better_than_any_code():
    weak_elsewhere = [8, 8, 1, 1, 8, 8, 1, 1]
    assert best_latents(codes(weak_elsewhere), TYPES, FIRST).f1.tolist() == [1]
    assert best_latents(codes(weak_elsewhere), TYPES, FIRST, (0.0,)).f1.tolist() == [pytest.approx(2 * 2 / (4 + 2))]


def test_a_latent_that_is_always_off_detects_nothing():
    assert best_latents(codes([0] * 8), TYPES, FIRST).f1.tolist() == [0]


def test_the_rule_of_token_identity_by_hand():
    # Token 7 is of the type and token 8 is not; token 9 is new in the second half and in no rule.
    ids = np.array([7, 7, 8, 8, 7, 9, 8, 8])
    # One of two found: 2 * 1 / (1 + 2).
    assert of_identity(ids, TYPES, FIRST).tolist() == [pytest.approx(2 / 3)]
    # A token that is never of the type on the first half is not in the rule.
    assert of_identity(np.array([1, 1, 2, 2, 1, 1, 2, 2]), TYPES, FIRST).tolist() == [1]


def test_purity_by_hand():
    leaves = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    found = purities(codes([1, 2, 0, 0, 3, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], [3, 0, 1, 0, 0, 0, 0, 0]), leaves, 2)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert found == pytest.approx([1, 0, 1 - entropy / np.log(2)], abs=1e-6)
    assert len(purities(codes([1] + [0] * 7), leaves, 2)) == 0

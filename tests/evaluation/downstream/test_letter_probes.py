import numpy as np
import pytest

from fsae.evaluation.downstream.first_letters import LETTERS
from fsae.evaluation.downstream.letter_probes import (
    absorbed,
    f1_of,
    letter_probes,
    main_latents,
    sparse_weights,
)

# Latents: a main latent, two that may absorb (cosines 0.5 and 0.2), and one at a right angle.
COSINES = np.array([1.0, 0.5, 0.2, 0.0])
MAIN = np.array([0])


@pytest.mark.parametrize(
    ("codes", "target", "fraction", "full"),
    [
        # The main latent holds all of the projection.
        ([2, 0, 0, 0], 2, 0, False),
        ([3, 9, 0, 0], 2, 0, False),
        # The main latent holds 1 of 4; another one contributes 6 * 0.5 = 3: a = min(3, 4 - 1), 3 / (3 + 1).
        ([1, 6, 0, 0], 4, 0.75, False),
        # It contributes 10 * 0.5 = 5, of which 4 - 1 were missing.
        ([1, 10, 0, 0], 4, 0.75, False),
        # 2 * 0.5 + 1 * 0.2 = 1.2 is less than 40 % of 4.
        ([1, 2, 1, 9], 4, 0, False),
        # The main latent is off.
        ([0, 4, 0, 0], 4, 1, True),
        # Off, and the others hold 1.9 of 4 together, but none 40 % alone.
        ([0, 3, 2, 9], 4, 1, False),
        # The word does not point to the letter at all.
        ([0, 4, 0, 0], -1, 0, False),
    ],
)
def test_absorption_by_hand(codes: list[float], target: float, fraction: float, full: bool):
    found = absorbed(np.array([codes], float), COSINES, np.array([target], float), MAIN)
    assert (found[0][0], found[1][0]) == (pytest.approx(fraction), full)


def test_a_latent_of_a_small_cosine_absorbs_nothing():
    fraction, full = absorbed(np.array([[0, 100.0]]), np.array([1, 0.09]), np.array([4.0]), MAIN)
    # 100 * 0.09 = 9 is more than the projection; the definition of full absorption takes cosines from 0.025.
    assert (fraction[0], full[0]) == (0, True)


def test_a_single_latent_has_nothing_to_absorb_it():
    fraction, full = absorbed(np.array([[0.0], [1.0]]), np.array([1.0]), np.array([4.0, 4.0]), MAIN)
    assert (fraction.tolist(), full.tolist()) == ([0, 0], [False, False])


def test_f1_by_hand():
    detected, true = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert f1_of(detected, true) == 0.5
    assert f1_of(np.zeros(3, bool), np.zeros(3, bool)) == 0


def words(count: int = 400, letters: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """One direction per letter, and noise."""
    draw = np.random.default_rng(0)
    of_words = draw.integers(letters, size=count)
    vectors = 5 * np.eye(12)[of_words] + draw.normal(size=(count, 12))
    return vectors.astype(np.float32), of_words


def test_probes_find_the_direction_of_each_letter():
    vectors, letters = words()
    found = letter_probes(vectors, letters, np.arange(300), np.arange(300, 400))
    assert (found.f1[:4] > 0.95).all()
    assert (found.f1[4:] == 0).all()
    assert not found.directions[4:].any()
    np.testing.assert_allclose(np.linalg.norm(found.directions[:4], axis=1), 1, atol=1e-5)
    # Each points along its own letter's direction more than along any other.
    assert (found.directions[:4].argmax(1) == np.arange(4)).all()
    assert (found.found[:4].sum(1) <= (letters[300:, None] == np.arange(4)).sum(0)).all()


def test_sparse_weights_and_main_latents_find_a_planted_split():
    vectors, letters = words()
    probes = letter_probes(vectors, letters, np.arange(300), np.arange(300, 400))
    draw = np.random.default_rng(1)
    codes = np.zeros((400, 8))
    # Latents 0 and 1 share the words of letter 0; latents 2 to 4 are those of letters 1 to 3; the others are noise.
    first = draw.random(400) < 0.5
    codes[:, 0], codes[:, 1] = (letters == 0) & first, (letters == 0) & ~first
    for letter in (1, 2, 3):
        codes[:, letter + 1] = letters == letter
    codes[:, 5:] = draw.random((400, 3))
    weights = sparse_weights(codes[:300], letters[:300])
    assert weights.shape == (len(LETTERS), 8)
    assert {*np.argsort(-weights[0])[:2]} == {0, 1}
    for letter in (1, 2, 3):
        assert weights[letter].argmax() == letter + 1
    for letter, main in ((0, 2), (1, 1)):
        ranked = np.argsort(-weights[letter])[:5]
        assert len(main_latents(codes, letters == letter, probes, ranked, 0.03)) == main

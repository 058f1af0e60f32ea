from typing import Any, cast

import numpy as np
import pytest
import torch

from fsae.evaluation.downstream.concept_steering import Push, Quality, Steered, Steering, outcome, repetition
from tests.evaluation.downstream.texts import Text
from tests.evaluation.downstream.words import D_IN, OTHERS, OWN, WORDS, WordModel


def steering(**changes: Any) -> Steering:
    text = Text()
    text.model = cast(Any, WordModel())
    for name, value in changes.items():
        setattr(text, name, value)
    return Steering(cast(Any, text), [OTHERS[0], f"{OTHERS[1]} {OTHERS[2]}"], 8, 0, lambda: None)


def pushed(dimension: int, by: float) -> Push:
    return Push(0, by * torch.eye(D_IN)[dimension])


def test_the_score_is_a_harmonic_mean():
    assert Quality(1.0, 0.5, 1.0).score == 0.75
    assert Quality(1.0, 0.5, 0.0).score == 0


def test_one_half_of_the_prompts_chooses_the_strength_for_the_other():
    texts = [["5", "0", "5", "0"], ["5", "5", "5", "2.5"]]
    fluency = np.array([[1.0] * 4, [0.5] * 4])
    steered = Steered(texts, fluency, np.ones((2, 4)))
    found = outcome(steered, ["1", "2", "3", "4"], lambda texts: np.array([float(text) for text in texts]))
    # Prompts 0 and 2 score 1 at the first strength and 3 / (1 + 2 + 1) at the second one. Prompts 1 and 3 score 0 at
    # the first one; at the second one the AUROC is (4 + 2) / 8.
    assert found.strengths == [0, 1]
    assert found.halves == [Quality(0.0, 1.0, 1.0), Quality(1.0, 0.5, 1.0)]
    assert found.scored == [[1, 3], [0, 2]]


def test_repetition_counts_n_grams_that_occurred_earlier():
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repetition([1, 2, 3]) == 0


def test_a_push_changes_every_token_except_the_first_and_massive_ones():
    rows, rest = [[0, 10]], [[WORDS.index(OWN["birds"][0])]]
    push = pushed(0, 3.0).vector[None]
    # One of four words with a logit of 3, among 28 words with 0 (both special tokens have -30).
    plain, raised = np.log(len(WORDS) - 2), np.log(4 * np.exp(3) + len(WORDS) - 6) - 3
    assert steering().losses(rows, rest) == pytest.approx([plain], abs=1e-5)
    assert steering().losses(rows, rest, push) == pytest.approx([raised], abs=1e-5)
    assert steering(prepends_bos=False).losses([[10]], rest, push) == pytest.approx([plain], abs=1e-5)
    assert steering(norm_limit=0.0).losses(rows, rest, push) == pytest.approx([plain], abs=1e-5)
    assert steering().losses(rows, [[]]).tolist() == [0]


def test_text_is_steered_and_the_draws_do_not_depend_on_other_strengths():
    found = steering()
    birds, strong = set(OWN["birds"]), found.steered(pushed(0, 1.0), [8.0, 0.0])
    assert all(set(text.split()) <= birds for text in strong.texts[0])
    assert not all(set(text.split()) <= birds for text in strong.texts[1])
    # Without a push the answer stays.
    assert strong.answer[1].tolist() == [1, 1]
    assert (strong.answer[0] < 0.1).all()
    assert found.steered(pushed(0, 1.0), [8.0]).texts == strong.texts[:1]
    assert len(found.plain) == 8


def test_likelihood_rises_for_texts_of_the_pushed_concept():
    found = steering()
    of_birds, of_ships = [" ".join(OWN[name]) for name in ("birds", "ships")]
    # After a bird, birds have a logit of 2, and pushed by 2 one of 4. After a ship, birds pushed by 2 have as much as
    # ships.
    birds_rise = np.log(4 * np.exp(2) + 28) - 2 - (np.log(4 * np.exp(4) + 28) - 4)
    ships_rise = np.log(4 * np.exp(2) + 28) - np.log(8 * np.exp(2) + 24)
    rise = found.likelihood(pushed(0, 1.0), 2.0, [of_birds], [of_ships])
    assert rise == pytest.approx(birds_rise - ships_rise, abs=1e-5)
    assert found.likelihood(pushed(0, 1.0), 2.0, [of_birds], [of_birds]) == 0
    # A dimension that raises no logit.
    assert found.likelihood(pushed(3, 1.0), 2.0, [of_birds], [of_ships]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("pads", [True, False])
def test_models_without_padding_are_steered_row_by_row(pads: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(WordModel, "accepts_padding", pads)
    found = steering()
    # Plain texts of one prompt differ.
    assert len({*found.plain[::2]}) == 4
    assert found.steered(pushed(0, 1.0), [8.0]).fluency.shape == (1, 2)

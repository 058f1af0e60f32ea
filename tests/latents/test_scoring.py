"""Tests of an explanation: the examples of each request, and the scores of the answers."""

import numpy as np
import pytest

from fsae.latents.excerpts import NEIGHBOUR, Excerpt, ExcerptSizes
from fsae.latents.scoring import DETECTION, FUZZING, RIGHT, WRONG, questions_of, scores_of
from fsae.outputs.explanations import Scores
from fsae.outputs.latent_store import TOP

SIZES = ExcerptSizes()


def excerpts(count: int, kind: str = TOP) -> list[Excerpt]:
    codes = np.array([0, 0, 1, 0, 0], np.float32)
    return [Excerpt(kind, number, 2, 0, (number, 1, 2, 3, 4), codes) for number in range(count)]


def questions(positives: int, negatives: int, per_request: int = 5):
    def strings(tokens):
        return [f" {token}" for token in tokens]

    return questions_of(7, excerpts(positives), excerpts(negatives, NEIGHBOUR), SIZES, strings, per_request)


def test_detection_has_plain_excerpts_and_fuzzing_has_marked_ones():
    found = questions(2, 2)
    assert [each.test for each in found] == [DETECTION, FUZZING]
    detection, fuzzing = (sorted(each.examples, key=lambda example: example.kind) for each in found)
    assert [(each.kind, each.positive) for each in detection] == [(NEIGHBOUR, False)] * 2 + [(TOP, True)] * 2
    assert all("<<" not in each.shown.plain for each in detection)
    assert [(each.kind, each.positive) for each in fuzzing] == [(RIGHT, True)] * 2 + [(WRONG, False)] * 2
    assert all("<< 2>>" in each.shown.marked for each in fuzzing if each.positive)
    assert all("<<" in each.shown.marked and "<< 2>>" not in each.shown.marked for each in fuzzing if not each.positive)


@pytest.mark.parametrize("per_request", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("count", [2, 3, 10, 11])
def test_requests_are_equally_long_and_separate_the_marks_of_an_excerpt(count: int, per_request: int):
    found = [each for each in questions(count, count, per_request) if each.test == FUZZING]
    lengths = [len(each.examples) for each in found]
    assert sum(lengths) == 2 * count
    assert max(lengths) <= per_request
    assert max(lengths) - min(lengths) <= 1
    for each in found:
        contexts = [example.excerpt.context for example in each.examples]
        assert len(set(contexts)) == len(contexts) or len(found) == 1


def test_a_latent_that_is_always_on_is_tested_by_marks_alone():
    assert {each.test for each in questions(4, 0)} == {FUZZING}


def test_questions_do_not_change():
    for one, other in zip(questions(5, 5), questions(5, 5), strict=True):
        assert [each.shown for each in one.examples] == [each.shown for each in other.examples]


def test_scores_are_those_of_their_definitions():
    # 3 hits, 1 miss, 2 false alarms, 4 rejections, 2 unreadable.
    judged = [(True, 1)] * 3 + [(True, 0)] + [(False, 1)] * 2 + [(False, 0)] * 4 + [(True, None), (False, None)]
    assert scores_of(judged) == Scores(
        balanced_accuracy=(3 / 4 + 4 / 6) / 2,
        precision=3 / 5,
        recall=3 / 4,
        f1=2 * 3 / (2 * 3 + 2 + 1),
        positives=4,
        negatives=6,
        unreadable=2,
        accuracy=7 / 10,
    )


@pytest.mark.parametrize("answer", [0, 1])
def test_a_constant_judge_is_at_chance(answer: int):
    assert scores_of([(True, answer)] * 7 + [(False, answer)] * 3).balanced_accuracy == 0.5


def test_what_the_examples_do_not_determine_is_unknown():
    assert scores_of([(True, 0), (False, None)]) == Scores(
        balanced_accuracy=None, precision=None, recall=0.0, f1=0.0, positives=1, negatives=0, unreadable=1, accuracy=0.0
    )

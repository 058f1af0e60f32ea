from dataclasses import replace

import numpy as np
import pytest

from fsae.evaluation.downstream.labelled_texts import LabelledTexts
from fsae.evaluation.downstream.questions import NORMAL, Case, questions_about


def some_texts(classes: int, of_each: int = 12) -> LabelledTexts:
    labels = np.repeat(np.arange(classes), of_each)
    names = [f"class {label}" for label in range(classes)]
    return LabelledTexts("x", [str(row) for row in range(len(labels))], labels, names)


def test_two_classes_are_one_question_with_a_split_per_repeat():
    difficulties = [NORMAL, (Case.scarce, 4), (Case.imbalanced, 0.25), (Case.mislabelled, 0.2)]
    (found,) = questions_about(some_texts(2), 16, 8, difficulties, repeats=2, seed=0)
    assert (found.name, list(found.rows)) == ("x", list(range(24)))
    assert list(found.splits) == difficulties
    first, second = found.splits[NORMAL]
    assert list(first.train) != list(second.train)
    assert len(found.splits[Case.scarce, 4][0].train) == 4
    assert found.splits[Case.imbalanced, 0.25][0].labels.mean() == pytest.approx(0.25, abs=0.05)
    assert (found.splits[Case.mislabelled, 0.2][0].labels != found.labels[first.train]).sum() == 3


def test_each_of_several_classes_is_asked_for_against_the_others():
    texts = some_texts(3)
    found = questions_about(texts, 12, 6, [NORMAL], repeats=1, seed=0)
    assert [each.name for each in found] == ["x: class 0", "x: class 1", "x: class 2"]
    of = texts.labels[found[1].rows]
    assert np.bincount(of).tolist() == [6, 12, 6]
    assert (found[1].labels == (of == 1)).all()


def test_texts_of_one_file_are_on_one_side_in_every_difficulty():
    texts = replace(some_texts(2, of_each=60), groups=np.arange(120) % 20)
    difficulties = [NORMAL, (Case.scarce, 4), (Case.imbalanced, 0.25), (Case.mislabelled, 0.2)]
    (found,) = questions_about(texts.sample(100, 0), 40, 20, difficulties, repeats=3, seed=0)
    groups = texts.sample(100, 0).groups
    assert groups is not None
    for each in (split for splits in found.splits.values() for split in splits):
        assert not set(groups[each.train]) & set(groups[each.test])
    assert len(found.splits[NORMAL][0].train) > 30


def test_a_data_set_with_too_few_texts_is_named():
    with pytest.raises(ValueError, match="data set x: the classes have 1 and 1 rows, too few"):
        questions_about(some_texts(2, of_each=1), 4, 2, [NORMAL], repeats=1, seed=0)

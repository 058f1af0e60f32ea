import numpy as np
import pytest

from fsae.evaluation.downstream.splits import split

LABELS = np.array([0, 1] * 50)


def test_parts_are_balanced_and_apart():
    found = split(LABELS, 40, 20, seed=0)
    assert (len(found.train), len(found.test)) == (40, 20)
    assert not set(found.train) & set(found.test)
    assert (LABELS[found.train].mean(), LABELS[found.test].mean()) == (0.5, 0.5)
    assert (found.labels == LABELS[found.train]).all()
    assert list(split(LABELS, 40, 20, seed=0).train) == list(found.train)
    assert list(split(LABELS, 40, 20, seed=1).train) != list(found.train)


def test_parts_shrink_in_proportion_if_rows_are_few():
    found = split(LABELS, 300, 100, seed=0)
    assert (len(found.train), len(found.test)) == (76, 24)


@pytest.mark.parametrize("share", [0.1, 0.75])
def test_classes_have_the_share_that_is_asked_for(share: float):
    found = split(LABELS, 40, 20, seed=0, share=share)
    assert LABELS[found.train].mean() == pytest.approx(share, abs=0.03)
    assert LABELS[found.test].mean() == pytest.approx(share, abs=0.03)
    assert not set(found.train) & set(found.test)


def test_the_first_rows_have_both_classes():
    found = split(LABELS, 40, 20, seed=0)
    few = found.first(5)
    assert (few.labels.sum(), len(few.train)) == (3, 5)
    assert set(few.train) <= set(found.train)
    assert few.test is found.test


def test_a_share_of_labels_is_wrong():
    found = split(LABELS, 40, 20, seed=0)
    wrong = found.mislabelled(0.25, seed=1)
    assert (wrong.labels != found.labels).sum() == 10
    assert (LABELS[wrong.train] == found.labels).all()


def test_a_class_with_too_few_rows_is_refused():
    with pytest.raises(ValueError, match="have 4 and 1 rows, too few"):
        split(np.array([0, 0, 0, 0, 1]), 4, 2, seed=0)

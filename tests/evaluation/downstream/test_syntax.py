import pytest

from fsae.evaluation.downstream.syntax import Language, Passage, passages

SOURCE = "def f(x):\n    return x + 'é'  # ü\n\nwhile True:\n    f(1)\n"


def types(passage: Passage, *words: str) -> list[tuple[str, frozenset[str]] | None]:
    """The types of the first characters of some words, which stand in this order."""
    begins = [passage.text.index(word) for word in words]
    return passage.types([(begin, begin + 1) for begin in begins])


def test_a_token_has_the_type_of_its_leaf_and_of_all_nodes_around_it():
    (passage,) = passages([SOURCE], Language.python, 1000)
    assert passage.text == SOURCE
    found = types(passage, "def", "f(x", "(", "return", "x + ", "é", "# ü", "while", "True")
    assert [each and each[0] for each in found] == [
        "function_definition",
        "identifier",
        "parameters",
        "return_statement",
        "identifier",
        "string_content",
        "comment",
        "while_statement",
        "true",
    ]
    assert found[5] is not None
    assert found[5][1] == {
        "function_definition", "block", "return_statement", "binary_operator", "string", "string_content"
    }  # fmt: skip


def test_a_token_with_a_space_is_of_the_leaf_after_it():
    (passage,) = passages([SOURCE], Language.python, 1000)
    begin = passage.text.index(" x +")
    assert passage.types([(begin, begin + 2), (9, 13)]) == [
        (
            "identifier",
            frozenset({"function_definition", "block", "return_statement", "binary_operator", "identifier"}),
        ),
        None,
    ]


def test_a_token_of_two_leaves_is_of_the_longer_part():
    (passage,) = passages([SOURCE], Language.python, 1000)
    begin = passage.text.index("'é'")
    assert [each and each[0] for each in passage.types([(begin + 1, begin + 3)])] == ["string_content"]


def test_passages_are_whole_lines_and_lose_nothing():
    found = list(passages([SOURCE, "x = 1\n"], Language.python, 12))
    assert [each.text for each in found] == [
        "def f(x):\n    return x + 'é'  # ü\n",
        "\nwhile True:\n",
        "    f(1)\n",
        "x = 1\n",
    ]
    assert [each.file for each in found] == [0, 0, 0, 1]
    assert [each and each[0] for each in types(found[1], "while")] == ["while_statement"]
    assert [each and each[0] for each in types(found[2], "f", "1")] == ["identifier", "integer"]


def test_a_leaf_over_several_passages_is_in_each():
    source = 'x = """one\ntwo\nthree\n"""\n'
    found = list(passages([source], Language.python, 3))
    assert "".join(each.text for each in found) == source
    assert [each and each[0] for each in types(found[1], "two")] == ["string_content"]


def test_the_text_of_a_string_around_an_escape_sequence_has_the_types_of_the_string():
    (passage,) = passages(['x = "one\\ntwo"\n'], Language.python, 1000)
    found = types(passage, "one", "\\n", "two")
    assert [each and each[0] for each in found] == ["string_content", "escape_sequence", "string_content"]
    assert found[2] is not None
    assert found[2][1] == {"assignment", "expression_statement", "string", "string_content"}


@pytest.mark.parametrize(
    ("language", "source", "word", "kind"),
    [
        (Language.java, "class A { int f() { return 1; } }\n", "return", "return_statement"),
        (Language.c, "int f(void) { if (1) return 2; }\n", "if", "if_statement"),
    ],
)
def test_other_languages_have_grammars(language: Language, source: str, word: str, kind: str):
    (passage,) = passages([source], language, 1000)
    assert [each and each[0] for each in types(passage, word)] == [kind]


def test_a_file_that_cannot_be_parsed_has_no_passage():
    assert [each.file for each in passages(["def (:\n", "x = 1\n"], Language.python, 100)] == [1]

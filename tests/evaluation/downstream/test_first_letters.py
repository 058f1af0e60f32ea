from typing import Any, cast

import pytest

from fsae.evaluation.downstream.first_letters import Word, prompts_of, words_of


class Vocabulary:
    """Tokens of a tiny vocabulary: words of letters with and without a space, and other tokens."""

    name = "tiny"
    special_ids = frozenset({1})

    def __init__(self, words: int = 150):
        self.texts = ["<s>", "end", "9", " b7", "é", "  two", ""]
        self.texts += [f"{' ' if i % 2 else ''}{chr(97 + i % 26)}{chr(97 + i // 26)}x" for i in range(words)]
        self.d_vocab = len(self.texts)

    def strings(self, ids: range) -> list[str]:
        return [self.texts[number] for number in ids]


def test_words_are_tokens_of_letters_with_at_most_one_space():
    vocabulary = Vocabulary()
    found = words_of(cast(Any, vocabulary), 1000, 0)
    assert sorted(word.token for word in found) == list(range(7, 157))
    assert words_of(cast(Any, vocabulary), 10, 0) == found[:10]
    assert words_of(cast(Any, vocabulary), 1000, 1) != found
    assert [Word(0, text).letter for text in ("apple", " Bee", "z")] == [0, 1, 25]


def test_too_few_words_are_refused():
    with pytest.raises(ValueError, match="tiny has 50 tokens that are words"):
        words_of(cast(Any, Vocabulary(50)), 1000, 0)


def test_a_prompt_spells_other_words_and_ends_with_its_own():
    some = [Word(number, text) for number, text in enumerate([" apple", "Bee", " cat"])]
    prompts = prompts_of(some, 2, 0)
    assert prompts == prompts_of(some, 2, 0)
    for word, prompt in zip(some, prompts, strict=True):
        *examples, own = prompt.removeprefix("\n").split("\n")
        assert own == word.text
        assert sorted(examples) == sorted(
            f"{other.text} has the first letter: {other.text.strip()[0].upper()}" for other in some if other != word
        )

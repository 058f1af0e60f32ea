"""The spelling task: words that are one token of a model, and prompts that ask for their first letters."""

import random
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fsae.language_models.transformer_lens import TransformerLensModel

LETTERS = string.ascii_lowercase
_TEMPLATE = "{word} has the first letter:"


class Word(NamedTuple):
    """A word that is one token.

    Attributes:
        token: its id.
        text: what the token stands for, with at most one space before it.
    """

    token: int
    text: str

    @property
    def letter(self) -> int:
        """Return the number of its first letter, from 0 for "a"."""
        return LETTERS.index(self.text.strip().lower()[0])


def words_of(model: "TransformerLensModel", count: int, seed: int) -> list[Word]:
    """Return tokens that consist of ASCII letters, with at most one space before them, in an order drawn from a seed.

    Upper and lower case and words with and without a space are different words, as in SAEBench (`absorption/vocab.py`).

    Args:
        model: the language model.
        count: words, at most.
        seed: of the draw.

    Raises:
        ValueError: the vocabulary has fewer than 100 such tokens.
    """
    found = []
    for token, text in enumerate(model.strings(range(model.d_vocab))):
        letters = text.removeprefix(" ")
        if letters.isascii() and letters.isalpha() and token not in model.special_ids:
            found.append(Word(token, text))
    if len(found) < 100:
        raise ValueError(
            f"model {model.name} has {len(found)} tokens that are words of Latin letters, too few to ask for first "
            "letters; leave absorption out of eval"
        )
    random.Random(seed).shuffle(found)
    return found[:count]


def prompts_of(words: Sequence[Word], examples: int, seed: int) -> list[str]:
    """Return a prompt for each word, which ends with the word: examples of spelling, and the word in question.

    A causal model's activations at the word do not depend on the question after it (" has the first letter:"), so the
    prompt leaves it out. Examples are other words, a line each; a new line precedes the first one.

    Args:
        words: the words.
        examples: words before each, none of them the word itself.
        seed: of the examples.
    """
    draw, prompts = random.Random(seed), []
    for word in words:
        others = [other for other in draw.sample(words, min(len(words), examples + 1)) if other != word][:examples]
        lines = [f"{_TEMPLATE.format(word=other.text)} {LETTERS[other.letter].upper()}" for other in others]
        prompts.append("\n" + "\n".join([*lines, word.text]))
    return prompts

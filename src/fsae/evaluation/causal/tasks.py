"""Tasks: pairs of prompts that differ in one word, on which a model must give different answers."""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import torch

from fsae.evaluation.causal.prompts import Contrasts


@dataclass(frozen=True)
class Pair:
    """Two prompts of one task, in the words of feature-circuits (arXiv 2403.19647), whose files have these fields.

    Attributes:
        clean_prefix, patch_prefix: prompts that differ in the word on which the answer depends.
        clean_answer, patch_answer: the right answer to each, which is the wrong one to the other.
    """

    clean_prefix: str
    patch_prefix: str
    clean_answer: str
    patch_answer: str


class Words(Protocol):
    """The part of a language model that tasks need."""

    name: str

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens."""
        ...


@dataclass(frozen=True, eq=False)
class Asked:
    """Pairs of prompts as tokens, all of one length.

    Attributes:
        clean: the clean prompts, contrasting their right and wrong answers.
        patch: the patch prompts, contrasting the same answers: a model that is right has a negative outcome.
        unfit: pairs that were left out, because an answer has several tokens or the lengths differ.
    """

    clean: Contrasts
    patch: Contrasts
    unfit: int

    def of(self, rows: torch.Tensor) -> "Asked":
        """Return some of the pairs."""
        return Asked(self.clean.of(rows), self.patch.of(rows), self.unfit)


# The plural of each noun adds an s.
_NOUNS = (
    "teacher", "doctor", "lawyer", "student", "author", "actor", "farmer", "driver", "singer", "writer", "artist",
    "friend", "parent", "boy", "girl", "king", "prince", "manager", "worker", "officer", "soldier", "pilot", "guard",
    "judge", "player", "dancer", "scientist", "nurse", "cook", "painter", "brother", "sister", "son", "daughter",
    "guest", "leader", "expert", "member", "owner",
)  # fmt: skip
_PREPOSITIONS = ("near", "behind", "with", "by")
_AUXILIARIES = (("is", "are"), ("was", "were"), ("has", "have"))
_VERBS = tuple((f"{verb}s", verb) for verb in ("like", "know", "see", "want", "love", "need", "help", "follow"))
_HIS = (
    "John", "James", "Robert", "Michael", "David", "William", "Richard", "Thomas", "Charles", "Daniel", "Matthew",
    "Paul", "Steven", "Andrew", "George", "Edward", "Brian", "Kevin", "Peter", "Henry", "Jack", "Adam", "Frank",
    "Tom",
)  # fmt: skip
_HER = (
    "Mary", "Jennifer", "Linda", "Elizabeth", "Barbara", "Susan", "Jessica", "Sarah", "Karen", "Lisa", "Nancy",
    "Betty", "Sandra", "Margaret", "Emily", "Michelle", "Carol", "Amanda", "Anna", "Rachel", "Laura", "Emma",
    "Alice", "Jane",
)  # fmt: skip
_PLACES = ("park", "store", "school", "office", "garden", "kitchen", "library", "church")
_GIVEN = ("book", "letter", "ball", "card", "key", "box", "cup", "picture")
_LISTS = ("names", "values", "items", "words", "lines", "parts", "keys", "rows", "files", "paths", "users", "nodes")
_ELEMENTS = ("x", "y", "i", "n", "a", "b", "s", "t")
_OPENING, _CLOSING = ("[", "("), ("]", ")")


def _agreeing(prompt: Callable[[str], str], number: int, verbs: tuple[str, str], noun: str) -> Pair:
    """Return a pair whose clean prompt has a noun of one number (0 for the singular) and the other its opposite."""
    forms = (noun, f"{noun}s")
    return Pair(prompt(forms[number]), prompt(forms[1 - number]), f" {verbs[number]}", f" {verbs[1 - number]}")


def _simple(draw: random.Random) -> Pair:
    verbs = draw.choice(_AUXILIARIES + _VERBS)
    return _agreeing(lambda noun: f"The {noun}", draw.randrange(2), verbs, draw.choice(_NOUNS))


def _across_a_phrase(draw: random.Random) -> Pair:
    noun, other = draw.sample(_NOUNS, 2)
    between = f"{draw.choice(_PREPOSITIONS)} the {other}{draw.choice(('', 's'))}"
    return _agreeing(lambda form: f"The {form} {between}", draw.randrange(2), draw.choice(_AUXILIARIES), noun)


def _within_a_clause(draw: random.Random) -> Pair:
    first, noun = draw.sample(_NOUNS, 2)
    first = f"The {first}{draw.choice(('', 's'))} that the"
    return _agreeing(lambda form: f"{first} {form}", draw.randrange(2), draw.choice(_AUXILIARIES + _VERBS), noun)


def _pronoun(draw: random.Random) -> Pair:
    gender, verb = draw.randrange(2), draw.choice(("like", "know", "thank", "remember", "love", "trust"))
    names = [f"We {verb} {draw.choice(names)} because" for names in (_HIS, _HER)]
    pronouns = (" he", " she")
    return Pair(names[gender], names[1 - gender], pronouns[gender], pronouns[1 - gender])


def _indirect_object(draw: random.Random) -> Pair:
    names = draw.sample(_HIS + _HER, 2)
    place, gift, giver = draw.choice(_PLACES), draw.choice(_GIVEN), draw.randrange(2)
    prompts = [f"When {' and '.join(names)} came to the {place}, {name} gave a {gift} to" for name in names]
    answers = [f" {names[1]}", f" {names[0]}"]
    return Pair(prompts[giver], prompts[1 - giver], answers[giver], answers[1 - giver])


def _bracket(draw: random.Random) -> Pair:
    kind, name, elements = draw.randrange(2), draw.choice(_LISTS), ", ".join(draw.sample(_ELEMENTS, 3))
    prompts = [f"{name} = {bracket}{elements}" for bracket in _OPENING]
    return Pair(prompts[kind], prompts[1 - kind], _CLOSING[kind], _CLOSING[1 - kind])


TASKS: dict[str, Callable[[random.Random], Pair]] = {
    "simple": _simple,
    "nounpp": _across_a_phrase,
    "within_rc": _within_a_clause,
    "pronoun": _pronoun,
    "indirect_object": _indirect_object,
    "bracket": _bracket,
}
# The most draws for each pair that is wanted: small tasks repeat themselves.
_DRAWS = 20


def pairs_of(task: str, count: int, seed: int) -> list[Pair]:
    """Return up to `count` different pairs of a task: one of `TASKS`, or a file with a JSON object per line.

    Raises:
        ValueError: there is no such task or file, or a line lacks a field.
    """
    if task in TASKS:
        draw, found = random.Random(f"{task} {seed}"), dict[Pair, None]()
        for _ in range(_DRAWS * count):
            found[TASKS[task](draw)] = None
            if len(found) == count:
                break
        return list(found)
    file = Path(task)
    if not file.is_file():
        raise ValueError(
            f"eval.circuits.tasks names {task}, which is neither a task ({', '.join(TASKS)}) nor a file; name a file "
            f"whose lines are JSON objects with {', '.join(each.name for each in fields(Pair))}"
        )
    pairs = [_pair(line, f"{file}, line {number}") for number, line in enumerate(_lines(file), 1) if line.strip()]
    random.Random(seed).shuffle(pairs)
    return pairs[:count]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error}); save it again") from None


def _pair(line: str, where: str) -> Pair:
    names = [each.name for each in fields(Pair)]
    try:
        written = json.loads(line)
        return Pair(**{name: str(written[name]) for name in names})
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{where} is no JSON object with {', '.join(names)}; correct the line") from None


def asked(words: Words, pairs: Sequence[Pair], before: Sequence[int] = ()) -> Asked | None:
    """Return pairs as tokens of a model; None if no pair fits.

    A pair fits if each answer is one more token after its prompt, the two answers differ, and both prompts have the
    length that most pairs have.

    Args:
        words: the language model.
        pairs: the pairs.
        before: ids at the beginning of each prompt, such as a BOS.
    """
    clean, patch, right, wrong = (
        words.tokenise(texts)
        for texts in (
            [pair.clean_prefix for pair in pairs],
            [pair.patch_prefix for pair in pairs],
            [pair.clean_prefix + pair.clean_answer for pair in pairs],
            [pair.patch_prefix + pair.patch_answer for pair in pairs],
        )
    )
    fitting = [
        (one, other, of_one[-1], of_other[-1])
        for one, other, of_one, of_other in zip(clean, patch, right, wrong, strict=True)
        if one and len(one) == len(other) and of_one[:-1] == one and of_other[:-1] == other
        and of_one[-1] != of_other[-1]
    ]  # fmt: skip
    if not fitting:
        return None
    (length, _), *_ = Counter(len(one) for one, *_ in fitting).most_common(1)
    fitting = [each for each in fitting if len(each[0]) == length]
    ones, others, rights, wrongs = (list(column) for column in zip(*fitting, strict=True))
    answers = torch.tensor(rights), torch.tensor(wrongs)
    prompts = [Contrasts(torch.tensor([[*before, *each] for each in rows]), *answers) for rows in (ones, others)]
    return Asked(prompts[0], prompts[1], len(pairs) - len(fitting))

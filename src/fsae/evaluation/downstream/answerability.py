"""Questions with and without an answer, made of templates in four domains.

Each question without an answer is one with an answer in which words were replaced by as many letters. So the two
classes have the same lengths in words and characters, and length by itself says nothing.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fsae.evaluation.downstream.labelled_texts import LabelledTexts
from fsae.seeds import seed_of

_CLASSES = ("not answerable", "answerable")
# Names of four letters, things that are counted, and amounts of four letters that are no number.
_NAMES = (
    "Anna", "Beth", "Carl", "Dave", "Emma", "Fred", "Gina", "Hugo", "Ivan", "Jack", "Kate", "Liam", "Mary", "Nora",
    "Omar", "Paul", "Rosa", "Sara", "Toby", "Vera", "Will", "Yuri", "Zara", "Adam", "Bill", "Cleo", "Dora", "Evan",
)  # fmt: skip
_THINGS = ("apples", "books", "coins", "stamps", "cards", "pencils", "shells", "stones", "tickets", "eggs")
_AMOUNTS = ("some", "many", "more", "less")
_PLACES = (
    "France", "Germany", "Italy", "Spain", "Portugal", "Norway", "Sweden", "Finland", "Denmark", "Poland", "Austria",
    "Hungary", "Romania", "Bulgaria", "Greece", "Turkey", "Egypt", "Morocco", "Tunisia", "Kenya", "Nigeria", "Ghana",
    "Ethiopia", "India", "China", "Japan", "Thailand", "Vietnam", "Indonesia", "Malaysia", "Australia", "Canada",
    "Mexico", "Brazil", "Argentina", "Chile", "Peru", "Colombia", "Venezuela", "Cuba", "Jamaica", "Iceland", "Ireland",
    "Scotland", "Belgium", "Switzerland", "Croatia", "Serbia", "Slovakia", "Slovenia", "Estonia", "Latvia", "Lithuania",
    "Ukraine", "Russia", "Mongolia", "Nepal", "Pakistan", "Afghanistan", "Iran", "Iraq", "Syria", "Jordan", "Lebanon",
)  # fmt: skip
_ASKED = (
    "What is the capital of {}?", "Which language do people speak in {}?", "Which countries have a border with {}?",
    "What is the largest city in {}?", "Which currency do people use in {}?", "On which continent is {}?",
)  # fmt: skip
_TOWNS = ("Paris", "London", "Rome", "Oslo", "Madrid", "Berlin", "Vienna", "Lisbon", "Athens", "Dublin")
_FACTS = (
    ("{} lives in {}.", "Where does {} live?"), ("{} was born in {}.", "Where was {} born?"),
    ("{} works in {}.", "Where does {} work?"), ("{} studies in {}.", "Where does {} study?"),
)  # fmt: skip
_ORDERS = (("older", "oldest"), ("taller", "tallest"), ("faster", "fastest"), ("richer", "richest"))

# A question with an answer and the same one without.
_Pair = tuple[str, str]


def _arithmetic(generator: np.random.Generator) -> _Pair:
    """An operand is no number."""
    name, thing, amount = (_one(generator, each) for each in (_NAMES, _THINGS, _AMOUNTS[:2]))
    first, second = (str(each) for each in generator.integers(1000, 9999, size=2))
    template = "{} has {} {} and gets another {}. How many {} are there now?"
    missing = generator.integers(2)
    known = template.format(name, first, thing, second, thing)
    unknown = [amount if place == missing else each for place, each in enumerate((first, second))]
    return known, template.format(name, unknown[0], thing, unknown[1], thing)


def _entities(generator: np.random.Generator) -> _Pair:
    """The country does not exist: its letters were replaced, vowels by vowels."""
    template, place = _one(generator, _ASKED), _one(generator, _PLACES)
    invented = place
    while invented in _PLACES:
        letters = [_one(generator, "aeiou" if each in "aeiou" else "bdfgklmnprstvz") for each in place.lower()]
        invented = "".join(letters).capitalize()
    return template.format(place), template.format(invented)


def _context(generator: np.random.Generator) -> _Pair:
    """The sentence with the answer is about somebody else."""
    names = generator.permutation(_NAMES)[:4]
    towns = generator.permutation(_TOWNS)[:3]
    (fact, asked), (other, _) = (_FACTS[each] for each in generator.permutation(len(_FACTS))[:2])
    order = generator.permutation(3)

    def written(of: str) -> str:
        sentences = (fact.format(of, towns[0]), fact.format(names[1], towns[1]), other.format(names[2], towns[2]))
        return " ".join([*(sentences[each] for each in order), asked.format(names[0])])

    return written(names[0]), written(names[3])


def _order(generator: np.random.Generator) -> _Pair:
    """Two of three are not compared with each other."""
    a, b, c = generator.permutation(_NAMES)[:3]
    more, most = _ORDERS[generator.integers(len(_ORDERS))]
    flipped = generator.integers(2)

    def written(second: str) -> str:
        sentences = [f"{a} is {more} than {second}.", f"{b} is {more} than {c}."]
        return " ".join([*(sentences[::-1] if flipped else sentences), f"Who is the {most} of all?"])

    return written(b), written(c)


DOMAINS: dict[str, Callable[[np.random.Generator], _Pair]] = {
    "arithmetic": _arithmetic,
    "entities": _entities,
    "context": _context,
    "order": _order,
}


def answerability(domain: str, count: int, seed: int) -> LabelledTexts:
    """Return questions of a domain, half of them with an answer.

    Args:
        domain: one of `DOMAINS`.
        count: questions, at most; none occurs twice.
        seed: of the words.
    """
    generator = np.random.default_rng(seed_of(seed, domain) % 2**32)
    pairs: dict[str, str] = {}
    # A domain may have fewer different questions.
    for _ in range(20 * count):
        if len(pairs) >= count // 2:
            break
        known, unknown = DOMAINS[domain](generator)
        if unknown not in pairs.values():
            pairs.setdefault(known, unknown)
    texts = [text for pair in pairs.items() for text in pair]
    return LabelledTexts(f"answerable_{domain}", texts, np.array([1, 0] * len(pairs)), _CLASSES)


def _one(generator: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(generator.integers(len(words)))]

"""Tests of an explanation, and their scores.

Detection asks in which excerpts the explanation's pattern occurs: excerpts in which the latent is on, and others in
which it is off. Fuzzing asks whether the right tokens are marked: the same excerpts with marks on the strong tokens,
and with as many marks on other tokens (Paulo et al. 2024, arXiv 2410.13928). Selection is SAEBench's test
(`fsae.latents.selection`): one list of excerpts, of which those that fit are to be named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsae.latents.excerpts import Excerpt, ExcerptSizes
from fsae.latents.prompts import Messages, Prompts, Shown, judgements_in, selected_in, shown
from fsae.outputs.explanations import Scores

DETECTION, FUZZING, SELECTION = "detection", "fuzzing", "selection"
# Those of every explanation; selection is asked on request.
TESTS = (DETECTION, FUZZING)
# Kinds of examples of fuzzing.
RIGHT, WRONG = "right", "wrong"


@dataclass(frozen=True, eq=False)
class Example:
    """Example of a test.

    Attributes:
        kind: of the example.
        positive: whether the explanation of its latent should fit.
        excerpt: its text.
        shown: the excerpt as the template gets it.
    """

    kind: str
    positive: bool
    excerpt: Excerpt
    shown: Shown


@dataclass(frozen=True, eq=False)
class Question:
    """Examples that one request asks for.

    Attributes:
        test: `DETECTION`, `FUZZING` or `SELECTION`.
        examples: in the order of the request.
    """

    test: str
    examples: list[Example]

    def messages(self, prompts: Prompts, explanation: str) -> Messages:
        """Return the request for an explanation."""
        ask = {DETECTION: prompts.detect, FUZZING: prompts.fuzz, SELECTION: prompts.select}[self.test]
        return ask(explanation, [each.shown for each in self.examples])

    def judgements(self, answer: str) -> list[int | None]:
        """Return the answer's judgement of each example; None for those that it has no readable one of."""
        read = selected_in if self.test == SELECTION else judgements_in
        return read(answer, len(self.examples))


def questions_of(
    latent: int,
    positives: Sequence[Excerpt],
    negatives: Sequence[Excerpt],
    sizes: ExcerptSizes,
    strings: Callable[[Sequence[int]], Sequence[str]],
    per_request: int,
) -> list[Question]:
    """Return the questions of both tests; they are the same for every explanation.

    Args:
        latent: index of the latent.
        positives: excerpts in which the latent is on, which are not those of its explanation.
        negatives: excerpts in which it is off; without any, there is no detection.
        sizes: rules of the marks, and the seed of all choices.
        strings: returns the texts of tokens.
        per_request: most examples of a request.
    """
    random = np.random.default_rng((sizes.seed, latent, 2))

    def example(kind: str, positive: bool, excerpt: Excerpt, marked: np.ndarray | None = None) -> Example:
        marks = np.zeros(len(excerpt.tokens), bool) if marked is None else marked
        return Example(kind, positive, excerpt, shown(strings(excerpt.tokens), marks.tolist()))

    on = [example(each.kind, True, each) for each in positives]
    off = [example(each.kind, False, each) for each in negatives]
    right, wrong = [], []
    for each in positives:
        marks = each.wrong(sizes.threshold, random)
        if marks is not None:
            right.append(example(RIGHT, True, each, each.strong(sizes.threshold)))
            wrong.append(example(WRONG, False, each, marks))
    found = []
    if on and off:
        found += [Question(DETECTION, each) for each in _requests(on, off, per_request, random)]
    found += [Question(FUZZING, each) for each in _requests(right, wrong, per_request, random)]
    return found


def _requests(
    positives: Sequence[Example], negatives: Sequence[Example], per_request: int, random: np.random.Generator
) -> list[list[Example]]:
    """Return the examples of each request, shuffled.

    An excerpt with right marks and the same excerpt with wrong marks are in different requests, if there are several.
    """
    count = -(-(len(positives) + len(negatives)) // per_request)
    requests: list[list[Example]] = [[] for _ in range(count)]
    # The negatives continue where the positives end, so that all requests are equally long.
    shift = len(positives) % max(1, count) or 1
    for first, examples in ((0, positives), (shift, negatives)):
        for number, each in enumerate(examples):
            requests[(number + first) % count].append(each)
    return [[each[place] for place in random.permutation(len(each))] for each in requests if each]


def scores_of(judged: Sequence[tuple[bool, int | None]]) -> Scores:
    """Return the scores of judgements, each with the truth first; unreadable ones (None) are counted and left out."""
    readable = [(positive, bool(answer)) for positive, answer in judged if answer is not None]
    count = {
        (positive, answer): readable.count((positive, answer)) for positive in (True, False) for answer in (True, False)
    }
    hit, miss, alarm, rejection = count[True, True], count[True, False], count[False, True], count[False, False]
    recall, specificity = _ratio(hit, hit + miss), _ratio(rejection, rejection + alarm)
    return Scores(
        balanced_accuracy=None if recall is None or specificity is None else (recall + specificity) / 2,
        precision=_ratio(hit, hit + alarm),
        recall=recall,
        f1=_ratio(2 * hit, 2 * hit + alarm + miss),
        positives=hit + miss,
        negatives=rejection + alarm,
        unreadable=len(judged) - len(readable),
        accuracy=_ratio(hit + rejection, len(readable)),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def judged_example(test: str, example: Example, own: int | None, control: int | None) -> dict[str, Any]:
    """Return the record of an example with both judgements."""
    excerpt = example.excerpt
    return {
        "test": test,
        "kind": example.kind,
        "context": excerpt.context,
        "position": excerpt.position,
        "own": own,
        "control": control,
    }

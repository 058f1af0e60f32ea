"""A judge of steered texts: a language model at an endpoint that rates them as AxBench does."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fsae.latents.answers import Answers
from fsae.latents.endpoint import Endpoint

log = logging.getLogger(__name__)

_TASKS = (
    'how much it is about the concept "{concept}": 0 for not at all, 1 for somewhat, 2 for clearly',
    'how well it continues the beginning "{prompt}": 0 for not at all, 1 for somewhat, 2 for well',
    "how fluent it is, whatever it is about: 0 for not at all, 1 for somewhat, 2 for fluent",
)
_QUESTION = "Rate the text below by {task}. Answer with one number and nothing else: 0, 1 or 2.\n\nText: {text}"
_RATING = re.compile(r"(?<![\d.])[012](?![\d.]*\d)")
_ANSWER_TOKENS, _AT_ONCE = 16, 4


class Judged(NamedTuple):
    """A text that is judged, with its concept and the beginning that it continues."""

    concept: str
    prompt: str
    text: str


class Judge:
    """A judge. It is asked once at the start, so that a wrong address is found before the expensive part.

    A text has three ratings, 0, 1 or 2: concept, instruction, fluency. They are combined by the harmonic mean, which is
    0 if one is 0.

    Args:
        url: the endpoint's address.
        model: the model's name there.
        answers: the file of its answers, so that none is asked for twice.

    Raises:
        ValueError: the endpoint does not answer, or not in OpenAI's format.
    """

    def __init__(self, url: str, model: str, answers: Path):
        endpoint = Endpoint(url, model)
        endpoint.ask(_asked("how short it is: 0 for long, 1 for short, 2 for one word", "Yes."), _ANSWER_TOKENS)
        self._answers = Answers(answers, endpoint, _ANSWER_TOKENS)

    def ratings(self, judged: Sequence[Judged]) -> list[float | None]:
        """Return the combined rating of each text; None if an answer is no rating.

        Raises:
            ValueError: the endpoint fails.
        """
        questions = [
            ((number, place), _asked(task.format(concept=each.concept, prompt=each.prompt), each.text))
            for number, each in enumerate(judged)
            for place, task in enumerate(_TASKS)
        ]
        found: dict[tuple[int, int], int | None] = {
            name: rating_of(answer) for name, answer in self._answers.all(questions, _AT_ONCE)
        }
        combined = [_combined([found[number, place] for place in range(len(_TASKS))]) for number in range(len(judged))]
        if unread := sum(each is None for each in combined):
            log.warning("%d of %d texts have an answer of the judge that is no rating; left out", unread, len(combined))
        return combined


def rating_of(answer: str) -> int | None:
    """Return the last 0, 1 or 2 of an answer that stands alone; None without any."""
    found = _RATING.findall(answer)
    return int(found[-1]) if found else None


def _combined(ratings: Sequence[int | None]) -> float | None:
    known = [each for each in ratings if each is not None]
    if len(known) < len(ratings):
        return None
    return float(len(known) / np.sum(1 / np.array(known))) if min(known) > 0 else 0.0


def _asked(task: str, text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": _QUESTION.format(task=task, text=text)}]

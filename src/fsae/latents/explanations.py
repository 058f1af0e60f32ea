"""Explanations of latents by a language model, with scores and a control.

The model sees half of a latent's excerpts and explains them. It then judges other excerpts by that explanation
(`fsae.latents.scoring`), and the same excerpts by the explanation of another latent, which is the control: scores that
do not exceed those of the control say nothing about the explanation.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Float

from fsae.files import digest_of, write_json
from fsae.latents.answers import Answers, append_line
from fsae.latents.endpoint import Endpoint, EndpointError, RequestSettings
from fsae.latents.excerpts import Excerpt, ExcerptSizes, Negatives, Positives, positives_of
from fsae.latents.prompts import Messages, Prompts, Shown, explanation_in, shown
from fsae.latents.scoring import (
    DETECTION,
    FUZZING,
    SELECTION,
    TESTS,
    Question,
    judged_example,
    questions_of,
    scores_of,
)
from fsae.latents.selection import FIRING, SelectionSizes, random_excerpts, selected_positives, selection_of
from fsae.outputs.explanations import (
    ANSWERS,
    EXPLANATIONS,
    LOCK,
    SUMMARY,
    Explanation,
    Scores,
    explanation_line,
    explanation_lines,
    explanations_folder,
)
from fsae.outputs.latent_store import LatentStore
from fsae.progress import Progress

log = logging.getLogger(__name__)

OWN, CONTROL = "own", "control"
# Judgements after which a model that has given no readable one is given up.
_TRIED = 20
# Of the cost's estimate: characters per token of quoted text, characters of an explanation, tokens of the answers.
_CHARACTERS, _EXPLANATION, _EXPLANATION_TOKENS, _JUDGEMENT_TOKENS = 3, 100, 30, 25

Codes = Callable[[Sequence[tuple[int, Excerpt]]], list[Float[np.ndarray, " tokens"]]]


@dataclass(frozen=True)
class Cost:
    """Cost of explaining latents, before it begins.

    Attributes:
        latents: still to be explained.
        finished: explained by an earlier command.
        requests: at most; answers that an earlier command has kept cost nothing.
        prompt_tokens: about, of all requests.
        answer_tokens: about, of all answers.
    """

    latents: int
    finished: int
    requests: int
    prompt_tokens: int
    answer_tokens: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __str__(self) -> str:
        before = f" ({self.finished:,} are explained already)" if self.finished else ""
        return (
            f"{self.latents:,} latents to explain{before}: at most {self.requests:,} requests, about "
            f"{self.prompt_tokens:,} tokens of prompts and {self.answer_tokens:,} tokens of answers"
        )


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Explanations of latents, and their means; printed as a few lines.

    Attributes:
        explanations: one per latent, in the order of the latents.
        numbers: means over the latents; `explained_numbers` has their names.
        requests: that this command paid for.
        prompt_tokens: of these requests, as the server counted them; 0 if it did not.
        answer_tokens: of these answers.
        folder: with all files.
    """

    explanations: list[Explanation]
    numbers: dict[str, float | None]
    requests: int
    prompt_tokens: int
    answer_tokens: int
    folder: Path

    def __str__(self) -> str:
        def written(name: str) -> str:
            mean, error = self.numbers[name], self.numbers[f"{name}_error"]
            return "unknown" if mean is None else f"{mean:.3f}" + ("" if error is None else f" ± {error:.3f}")

        explained = sum(each.explanation is not None for each in self.explanations)
        lines = [f"{explained:,} of {len(self.explanations):,} latents explained; balanced accuracy, 0.5 by chance:"]
        for test in TESTS:
            lines.append(
                f"  {test:<10} {written(test)}, control {written(f'control_{test}')}, above the control "
                f"{written(f'{test}_above_control')}"
            )
        lines.append(f"  unreadable judgements: {100 * (self.numbers['unreadable'] or 0):.1f} %")
        lines.append(
            f"{self.requests:,} requests, {self.prompt_tokens:,} tokens of prompts and {self.answer_tokens:,} tokens "
            "of answers"
        )
        return "\n".join([*lines, f"explanations: {self.folder}"])


@dataclass(frozen=True, eq=False)
class Explainer:
    """Explanations of the latents of one store by one model.

    Attributes:
        store: of text.
        endpoint: the model that explains and judges.
        prompts: the questions.
        sizes: of the excerpts.
        requests: their sizes.
        selection: sizes of SAEBench's test; None if it is not asked.
        heartbeat: called after each answer; may raise to stop.

    Raises:
        ValueError: the store is not of text.
    """

    store: LatentStore
    endpoint: Endpoint
    prompts: Prompts
    sizes: ExcerptSizes = field(default_factory=ExcerptSizes)
    requests: RequestSettings = field(default_factory=RequestSettings)
    selection: SelectionSizes | None = None
    heartbeat: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if self.store.meta.kind != "text":
            raise ValueError(
                f"{self.store.folder} is a latent store without text: there is nothing to explain in words"
            )

    @property
    def folder(self) -> Path:
        """Return the folder of all files."""
        return explanations_folder(self.store.folder)

    @cached_property
    def settings(self) -> str:
        """Return the digest of what decides the questions, apart from model, prompts and weights."""
        meta = self.store.meta
        data = [meta.contexts, meta.context, meta.positions, meta.window, meta.top, meta.per_bin, meta.seed]
        of_requests = [self.requests.per_request, self.requests.answer_tokens]
        more = {} if self.selection is None else {"selection": asdict(self.selection)}
        return digest_of({"sizes": asdict(self.sizes), "requests": of_requests, "data": data} | more)

    def chosen(self, latents: int | Sequence[int], active: int = 1) -> list[int]:
        """Return the latents to explain, each with enough excerpts.

        Args:
            latents: their indices; or a number of them, for a random sample of the latents that have enough. A larger
                number adds to the sample of a smaller one.
            active: samples on which a latent of the random sample is on, at least.

        Raises:
            ValueError: there is no such latent, or none has enough excerpts.
        """
        if isinstance(latents, int):
            table = self.store.table
            alive = table["latent"].to_numpy()[table["count"].to_numpy() >= active]
            candidates, most = np.random.default_rng(self.sizes.seed).permutation(alive).tolist(), latents
        else:
            candidates, most = list(dict.fromkeys(latents)), len(latents)
        found = []
        for latent in candidates:
            if len(found) == most:
                break
            if self._positives(latent).enough:
                found.append(latent)
            elif not isinstance(latents, int):
                log.warning("latent %d has too few contexts to explain it and to score the explanation", latent)
        if not found:
            raise ValueError(
                f"{self.store.folder}: no latent has two contexts to explain it and two others for its scores; make "
                "the latent store from more tokens (eval.latents.tokens), or with more top contexts (eval.latents.top)"
            )
        return sorted(found)

    def cost(self, latents: Sequence[int]) -> Cost:
        """Return what it costs to explain latents that an earlier command has not explained."""
        finished, answers = self._finished(), self._answers()
        left = [latent for latent in latents if latent not in finished]
        sides = 2 if len(latents) > 1 else 1
        requests = characters = generated = 0
        for latent in left:
            own = self._positives(latent)
            question = self._explanation_question(own)
            if answers.known(question) is None:
                requests, generated = requests + 1, generated + _EXPLANATION_TOKENS
                characters += _length(question)
            # The negatives are unknown so far; they are as long as the positives, and as many.
            judged = self._questions(latent, own, own.scored, self._random(latent, own))
            requests, generated = requests + sides * len(judged), generated + sides * len(judged) * _JUDGEMENT_TOKENS
            characters += sides * sum(_length(each.messages(self.prompts, "x" * _EXPLANATION)) for each in judged)
        return Cost(len(left), len(latents) - len(left), requests, math.ceil(characters / _CHARACTERS), generated)

    def explain(self, latents: Sequence[int], codes: Callable[[], Codes]) -> Explained:
        """Explain latents and score the explanations; those that an earlier command has finished are read.

        Every answer and every finished latent is in a file before the next one is waited for. After a failure or a
        kill the same call continues.

        Args:
            latents: from `chosen`.
            codes: returns the function that `Negatives` needs; called if there is a latent to explain.

        Raises:
            ValueError: another process explains latents of this store.
            EndpointError: the endpoint fails, or its answers cannot be read.
            OSError: the disk is full.
        """
        with self._locked():
            answers, before = self._answers(), self._finished()
            left = [latent for latent in latents if latent not in before]
            finished = {latent: before[latent] for latent in latents if latent in before}
            if left:
                positives = [self._positives(latent) for latent in left]
                codes_of = codes()
                negatives = Negatives(self.store, self.sizes, codes_of).of(left, positives)
                rest = self._random_of(left, positives, codes_of)
                questions = {
                    latent: self._questions(latent, own, off, random)
                    for latent, own, off, random in zip(left, positives, negatives, rest, strict=True)
                }
                try:
                    for each in self._explained(left, positives, questions, finished, answers):
                        append_line(self.folder / EXPLANATIONS, explanation_line(each))
                        finished[each.latent] = each
                except EndpointError as error:
                    raise EndpointError(
                        f"{error}. {len(finished)} of {len(latents)} latents are finished; all answers are kept in "
                        f"{self.folder}, and the same command continues"
                    ) from error
            explanations = [finished[latent] for latent in latents]
            numbers = explained_numbers(explanations)
            write_json(self.folder / SUMMARY, self._identity() | {"latents": len(explanations)} | numbers)
        return Explained(
            explanations=explanations,
            numbers=numbers,
            requests=answers.asked,
            prompt_tokens=answers.prompt_tokens,
            answer_tokens=answers.answer_tokens,
            folder=self.folder,
        )

    def _explained(
        self,
        latents: Sequence[int],
        positives: Sequence[Positives],
        all_questions: dict[int, list[Question]],
        finished: dict[int, Explanation],
        answers: Answers,
    ) -> Iterator[Explanation]:
        """Yield the explanation of each latent as soon as it has all scores."""
        texts = self._texts(latents, positives, answers)
        known = {latent: each.explanation for latent, each in finished.items()} | texts
        partners = _partners([latent for latent, text in known.items() if text], self.sizes.seed)
        shown_of, questions, jobs = dict(zip(latents, positives, strict=True)), {}, []
        for latent, text in texts.items():
            questions[latent] = all_questions[latent] if text else []
            sides = {OWN: text, CONTROL: known[partners[latent]] if latent in partners else None}
            jobs += [
                ((latent, side, number), question.messages(self.prompts, explanation))
                for side, explanation in sides.items()
                if explanation
                for number, question in enumerate(questions[latent])
            ]

        def record(latent: int) -> Explanation:
            own = shown_of[latent]
            return self._record(latent, texts[latent], partners.get(latent), questions[latent], judged[latent], own)

        judged: dict[int, dict[tuple[str, int], list[int | None]]] = {latent: {} for latent in latents}
        wanted = Counter(latent for (latent, _, _), _ in jobs)
        # Latents without a question; and those that wait for the first readable answer.
        waiting = [latent for latent in latents if not wanted[latent]]
        tried, readable = 0, not jobs
        with closing(Progress("judging explanations", len(jobs), "requests")) as progress:
            for (latent, side, number), answer in answers.all(jobs, self.requests.at_once):
                progress.advance(1)
                self.heartbeat()
                judgements = judged[latent][side, number] = questions[latent][number].judgements(answer)
                tried, readable = tried + 1, readable or any(each is not None for each in judgements)
                if not readable and tried == min(_TRIED, len(jobs)):
                    raise EndpointError(
                        f"none of the first {tried} judgements of model {self.endpoint.model} can be read; expected "
                        f"lines such as '1: yes', found {_shortened(answer)}; use a larger model that follows "
                        "instructions, or other prompts (--prompts)"
                    )
                if len(judged[latent]) == wanted[latent]:
                    waiting.append(latent)
                if readable:
                    yield from map(record, waiting)
                    waiting.clear()
        yield from map(record, waiting)

    def _texts(self, latents: Sequence[int], positives: Sequence[Positives], answers: Answers) -> dict[int, str | None]:
        """Return the explanation of each latent; None if the model's answer has none."""
        questions = [(latent, self._explanation_question(own)) for latent, own in zip(latents, positives, strict=True)]
        texts = {}
        with closing(Progress("explaining latents", len(questions), "requests")) as progress:
            for latent, answer in answers.all(questions, self.requests.at_once):
                texts[latent] = explanation_in(answer)
                progress.advance(1)
                self.heartbeat()
        if not any(texts.values()):
            raise EndpointError(
                f"none of {len(texts)} answers of model {self.endpoint.model} has an explanation; if it thinks before "
                f"it answers, allow longer answers (--explain-tokens, now {self.requests.answer_tokens})"
            )
        return texts

    def _record(
        self,
        latent: int,
        text: str | None,
        partner: int | None,
        questions: Sequence[Question],
        judged: dict[tuple[str, int], list[int | None]],
        positives: Positives,
    ) -> Explanation:
        examples = [
            (question.test, each, number, place)
            for number, question in enumerate(questions)
            for place, each in enumerate(question.examples)
        ]

        def judgement(side: str, number: int, place: int) -> int | None:
            return judged[side, number][place] if (side, number) in judged else None

        def scores(side: str, test: str) -> Scores | None:
            answers = [
                (each.positive, judgement(side, number, place))
                for own_test, each, number, place in examples
                if own_test == test and (side, number) in judged
            ]
            return scores_of(answers) if answers else None

        return Explanation(
            latent=latent,
            explanation=text,
            **self._identity(),
            detection=scores(OWN, DETECTION),
            fuzzing=scores(OWN, FUZZING),
            selection=scores(OWN, SELECTION),
            control_of=partner,
            control_detection=scores(CONTROL, DETECTION),
            control_fuzzing=scores(CONTROL, FUZZING),
            control_selection=scores(CONTROL, SELECTION),
            shown=[each.context for each in positives.shown],
            judged=[
                judged_example(test, each, judgement(OWN, number, place), judgement(CONTROL, number, place))
                for test, each, number, place in examples
            ],
        )

    def _positives(self, latent: int) -> Positives:
        if latent not in self._found:
            self._found[latent] = positives_of(self.store, latent, self.sizes)
        return self._found[latent]

    @cached_property
    def _found(self) -> dict[int, Positives]:
        return {}

    def _explanation_question(self, positives: Positives) -> Messages:
        largest = max(float(np.nanmax(each.codes)) for each in positives.shown)
        return self.prompts.explain([self._with_strengths(each, largest) for each in positives.shown])

    def _with_strengths(self, excerpt: Excerpt, largest: float) -> Shown:
        marked = excerpt.strong(self.sizes.threshold)
        strengths = [max(1, math.ceil(10 * code / largest - 1e-6)) for code in excerpt.codes[marked].tolist()]
        return shown(self._strings(excerpt.tokens), marked.tolist(), strengths)

    def _questions(
        self, latent: int, own: Positives, negatives: Sequence[Excerpt], random: Sequence[Excerpt]
    ) -> list[Question]:
        found = questions_of(latent, own.scored, negatives, self.sizes, self._strings, self.requests.per_request)
        if selected := self._selected(latent, own):
            found.append(selection_of(latent, selected, random, self._strings, self.sizes.seed))
        return found

    def _selected(self, latent: int, own: Positives) -> list[Excerpt]:
        """Return the positives of SAEBench's test; none if it is not asked, or if the latent has too few."""
        if self.selection is None:
            return []
        return selected_positives(self.store, latent, own, self.selection, self.sizes.seed)

    def _random(self, latent: int, own: Positives) -> list[Excerpt]:
        """Return the negatives of SAEBench's test."""
        selected = self._selected(latent, own)
        if self.selection is None or not selected:
            return []
        return random_excerpts(self.store, latent, own, selected, self.selection, self.sizes.seed)

    def _random_of(self, latents: Sequence[int], positives: Sequence[Positives], codes: Codes) -> list[list[Excerpt]]:
        """Return the negatives of SAEBench's test for each latent, marked if the latent is on in them."""
        found = [self._random(latent, own) for latent, own in zip(latents, positives, strict=True)]
        pairs = [(latent, each) for latent, own in zip(latents, found, strict=True) for each in own]
        is_on = iter([bool(each.any()) for each in codes(pairs)])
        return [[replace(each, kind=FIRING) if next(is_on) else each for each in own] for own in found]

    def _strings(self, tokens: Sequence[int]) -> list[str]:
        return [self.store.strings[token] for token in tokens]

    def _identity(self) -> dict[str, Any]:
        return {
            "model": self.endpoint.model,
            "prompts": self.prompts.digest,
            "settings": self.settings,
            "weights": self.store.meta.weights,
        }

    def _finished(self) -> dict[int, Explanation]:
        """Return the latents that an earlier command explained with the same model, prompts and settings."""
        identity = self._identity()
        lines = explanation_lines(self.folder / EXPLANATIONS)
        return {
            each.latent: each for each in lines if all(getattr(each, name) == value for name, value in identity.items())
        }

    def _answers(self) -> Answers:
        return Answers(self.folder / ANSWERS, self.endpoint, self.requests.answer_tokens)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / LOCK, timeout=0):
                yield
        except Timeout:
            raise ValueError(f"another process writes explanations to {self.folder}; wait for it") from None


def explained_numbers(explanations: Sequence[Explanation]) -> dict[str, float | None]:
    """Return means over latents, each with its standard error in `NAME_error`; None for a mean over fewer than one.

    detection, fuzzing: balanced accuracy.
    control_detection, control_fuzzing: the same with the explanations of other latents.
    detection_above_control, fuzzing_above_control: mean difference of both, over latents that have both.
    unreadable: share of the judgements, the control's included, that could not be read. It has no error.
    """
    numbers: dict[str, float | None] = {}

    def add(name: str, values: Sequence[float]) -> None:
        numbers[name] = float(np.mean(values)) if values else None
        error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
        numbers[f"{name}_error"] = None if error is None else float(error)

    for test in TESTS:
        pairs = [(_accuracy(each, test), _accuracy(each, f"control_{test}")) for each in explanations]
        add(test, [own for own, _ in pairs if own is not None])
        add(f"control_{test}", [control for _, control in pairs if control is not None])
        both = [own - control for own, control in pairs if own is not None and control is not None]
        add(f"{test}_above_control", both)
    scores = [found for each in explanations for found in each.all_scores]
    judged = sum(each.positives + each.negatives + each.unreadable for each in scores)
    numbers["unreadable"] = sum(each.unreadable for each in scores) / judged if judged else None
    return numbers


def _accuracy(explanation: Explanation, test: str) -> float | None:
    scores: Scores | None = getattr(explanation, test)
    return None if scores is None else scores.balanced_accuracy


def _partners(latents: Sequence[int], seed: int) -> dict[int, int]:
    """Return another latent for each latent, and each once; none for a single latent."""
    order = np.random.default_rng(seed).permutation(sorted(latents)).tolist()
    return dict(zip(order, [*order[1:], order[0]], strict=True)) if len(order) > 1 else {}


def _length(messages: Messages) -> int:
    return sum(len(each["content"]) for each in messages)


def _shortened(answer: str) -> str:
    return repr(" ".join(answer.split())[:80])

"""`autointerp`: whether a language model can explain latents, so that a reader of the explanation knows where they are
on."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.latents import NewStore, store_name
from fsae.evaluation.subject import Subject
from fsae.latents.context_codes import context_codes
from fsae.latents.endpoint import Endpoint, RequestSettings
from fsae.latents.excerpts import RANDOM, ExcerptSizes
from fsae.latents.explanations import Codes, Explainer
from fsae.latents.findings import weights_digest
from fsae.latents.prompts import Prompts
from fsae.latents.scoring import DETECTION, FUZZING
from fsae.latents.selection import FIRING, SelectionSizes
from fsae.outputs.explanations import Explanation, Scores
from fsae.outputs.latent_store import META, LatentStore
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.ranges import COUNT, POSITIVE, SEED, between

log = logging.getLogger(__name__)

# The file of each latent's explanation and scores in the run's folder.
FILE = "autointerp.json"
_SAEBENCH = "saebench"
# Names of the forms of the score, with the test of an explanation and the score that it counts.
_FORMS: dict[str, tuple[str, str]] = {
    _SAEBENCH: ("selection", "accuracy"),
    DETECTION: (DETECTION, "balanced_accuracy"),
    FUZZING: (FUZZING, "balanced_accuracy"),
}
_TEXTS = {
    _SAEBENCH: "share of 14 excerpts that explanations place right",
    DETECTION: "balanced accuracy of excerpts by explanations",
    FUZZING: "balanced accuracy of marked tokens by explanations",
}
_SHORT = {_SAEBENCH: "SAEBench's score", DETECTION: "detection", FUZZING: "fuzzing"}
_SHUFFLED = {"shuffled": "explanations of other latents"}
# Options of `python -m fsae.latents --explain` that messages name, and the settings that they are here.
_OPTIONS = {
    "--explain-timeout": "eval.autointerp.timeout",
    "--explain-tokens": "eval.autointerp.answer_tokens",
    "--prompts": "eval.autointerp.prompts",
}
# A question to find out whether there is a judge.
_HELLO = [{"role": "user", "content": "Answer with one word: yes."}]


def _meanings() -> dict[str, Meaning]:
    found: dict[str, Meaning] = {}
    for form, text in _TEXTS.items():
        name = f"autointerp_{form}"
        found[name] = Meaning(f"{_SHORT[form]} of explanations, above the floor", better=Better.more)
        found[f"{name}_noise"] = Meaning(
            f"standard error of {name} over the latents that were drawn", shown=Shown.files, noise_of=name
        )
        raw = Meaning(text, better=Better.more, shown=Shown.files)
        found |= accompanied(f"{name}_raw", raw, _SHUFFLED, noise=False)
    found["autointerp_latents"] = Meaning("latents that were explained", shown=Shown.files)
    found["autointerp_unreadable"] = Meaning("share of judgements that cannot be read", shown=Shown.files)
    found["autointerp_firing"] = Meaning("share of random excerpts in which the latent is on", shown=Shown.files)
    return found


@dataclass(frozen=True, kw_only=True)
class Autointerp(Evaluation, group="eval.autointerp"):
    """Automatic interpretability in the forms of SAEBench (Karvonen et al., arXiv 2503.09532) and of delphi (Paulo et
    al., arXiv 2410.13928).

    A language model explains each of some latents by excerpts from the latent store, and judges other excerpts by the
    explanation (`fsae.latents.explanations`).

    - SAEBench: a list of 14 excerpts, in which 2 are top contexts, 2 are drawn in proportion to the square of their
      code, and 10 are random; the judge names those that fit. The score is the share of the 14 that is right.
    - detection: whether the latent is on in an excerpt; fuzzing: whether the right tokens of an excerpt are marked. The
      score is the balanced accuracy.

    Each score s is also measured with the explanation of another latent. This floor f is what a judge reaches without
    knowing the latent: 0.714 in SAEBench's form for the answer "none". The number is (s - f) / (1 - f), with means over
    the latents that have both: 0 for explanations that say nothing, 1 for perfect ones. Its noise is the jackknife
    standard error over these latents, which are a random draw of those that are on for `active` samples.

    Differences from SAEBench: the explanation is made of 20 excerpts instead of 15, half of them top contexts, with
    strengths; the prompts are fsae's own; a random excerpt is of another context than the others. Differences from
    delphi: half of the negatives of detection are hard ones, and no context is both explained and judged.

    Attributes:
        url, model: address of an endpoint in OpenAI's format, and the model that explains and judges there. The key is
            read from $FSAE_EXPLAIN_KEY.
        latents: of each dictionary.
        active: samples of the latent store on which a latent is on, at least.
        shown: excerpts from which a latent is explained.
        scored: positives of detection and of fuzzing, and as many negatives.
        width: tokens of these excerpts.
        per_request: examples of detection and fuzzing in one request.
        answer_tokens: the most tokens of an answer; a model that thinks before it answers needs more.
        at_once: requests at the same time; they decide no number.
        timeout: seconds for one answer.
        prompts: a template in place of `fsae/latents/prompts.jinja`; null for that.
        seed: of the latents and of all excerpts.
    """

    url: str | None = None
    model: str | None = None
    latents: int = field(default=100, metadata=between(least=2, most=10**6))
    active: int = field(default=15, metadata=COUNT)
    shown: int = field(default=20, metadata=between(least=2, most=1000))
    scored: int = field(default=10, metadata=between(least=2, most=1000))
    width: int = field(default=32, metadata=between(least=2, most=10_000))
    per_request: int = field(default=5, metadata=between(least=1, most=100))
    answer_tokens: int = field(default=300, metadata=COUNT)
    at_once: int = field(default=4, metadata=between(least=1, most=1000))
    timeout: float = field(default=120.0, metadata=POSITIVE)
    prompts: str | None = None
    seed: int = field(default=0, metadata=SEED)

    needs: ClassVar[frozenset[str]] = frozenset({"language_model"})
    reads: ClassVar[frozenset[str]] = frozenset({"latents"})
    in_sweeps: ClassVar[bool] = False
    # The answers are kept, and the latent store may be another one.
    repeatable: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = _meanings()

    def __post_init__(self):
        super().__post_init__()
        if self.url is None or self.model is None:
            raise ValueError(
                "eval.autointerp has no judge; set eval.autointerp.url to the address of a server that speaks OpenAI's "
                "protocol and eval.autointerp.model to the model's name there, or leave autointerp out of eval"
            )

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's numbers, and the explanations as a file of the run.

        Raises:
            ValueError: a run has no latent store, the judge fails, or its answers cannot be read.
        """
        assert self.url is not None
        assert self.model is not None
        try:
            with closing(Endpoint(self.url, self.model, timeout=self.timeout)) as endpoint:
                return self._measured(subject, endpoint)
        except ValueError as error:
            raise ValueError(_renamed(str(error))) from error

    def _measured(self, subject: Subject, endpoint: Endpoint) -> list[Measured]:
        prompts = Prompts(None if self.prompts is None else Path(self.prompts).expanduser())
        explainers = [self._explainer(store, endpoint, prompts, subject) for store in _stores(subject)]
        chosen = [each.chosen(self.latents, self.active) for each in explainers]
        if (fewest := min(map(len, chosen))) < 2:
            raise ValueError(
                f"{fewest} latent has enough excerpts, and the control needs two; make the latent store from more "
                "tokens (eval.latents.tokens), or lower eval.autointerp.active"
            )
        cost = reduce(add, [each.cost(latents) for each, latents in zip(explainers, chosen, strict=True)])
        log.info("%s", cost)
        if cost.requests:
            # A judge that is down is found out before the language model reads excerpts.
            endpoint.ask(_HELLO, self.answer_tokens)
        found = []
        for explainer, latents, autoencoder in zip(explainers, chosen, subject.autoencoders, strict=True):
            codes = partial(_codes, subject, autoencoder, explainer.store)
            found.append(explainer.explain(latents, codes).explanations)
        numbers = subject.by_run([numbers_of(each) for each in found])
        files = subject.by_run([[_line(explanation) for explanation in each] for each in found])
        pages = _pages(subject)
        return [
            Measured(own, files={FILE: lines}, folders=folders)
            for own, lines, folders in zip(numbers, files, pages, strict=True)
        ]

    def _explainer(self, store: LatentStore, endpoint: Endpoint, prompts: Prompts, subject: Subject) -> Explainer:
        return Explainer(
            store,
            endpoint,
            prompts,
            ExcerptSizes(shown=self.shown, scored=self.scored, width=self.width, seed=self.seed),
            RequestSettings(per_request=self.per_request, answer_tokens=self.answer_tokens, at_once=self.at_once),
            SelectionSizes(),
            subject.heartbeat,
        )


def numbers_of(explanations: Sequence[Explanation]) -> dict[str, float]:
    """Return the numbers of one autoencoder; a number that is not determined is NaN."""
    numbers: dict[str, float] = {}
    for form, (test, score) in _FORMS.items():
        pairs = [
            (own, floor)
            for each in explanations
            if (own := _score(each, test, score)) is not None
            and (floor := _score(each, f"control_{test}", score)) is not None
        ]
        name = f"autointerp_{form}"
        scores, floors = np.array(pairs).reshape(-1, 2).T
        numbers[name], numbers[f"{name}_noise"] = _above_floor(scores, floors)
        numbers[f"{name}_raw"], numbers[f"{name}_raw_shuffled"] = (
            float(each.mean()) if pairs else np.nan for each in (scores, floors)
        )
    judged = [scores for each in explanations for scores in each.all_scores]
    unreadable = sum(each.unreadable for each in judged)
    asked = sum(each.positives + each.negatives + each.unreadable for each in judged)
    kinds = [
        example["kind"] for each in explanations for example in each.judged if example["test"] == _FORMS[_SAEBENCH][0]
    ]
    random = kinds.count(RANDOM) + kinds.count(FIRING)
    numbers["autointerp_latents"] = float(sum(each.explanation is not None for each in explanations))
    numbers["autointerp_unreadable"] = unreadable / asked if asked else np.nan
    numbers["autointerp_firing"] = kinds.count(FIRING) / random if random else np.nan
    return numbers


def _score(explanation: Explanation, test: str, score: str) -> float | None:
    scores: Scores | None = getattr(explanation, test)
    return None if scores is None else getattr(scores, score)


def _above_floor(scores: Float[np.ndarray, " latents"], floors: Float[np.ndarray, " latents"]) -> tuple[float, float]:
    """Return (s - f) / (1 - f) of the means, and its standard error by leaving out one latent after the other."""

    def number(scores: np.ndarray, floors: np.ndarray) -> float:
        score, floor = scores.mean(), floors.mean()
        return float((score - floor) / (1 - floor)) if floor < 1 else np.nan

    count = len(scores)
    if count < 2:
        return (np.nan if count == 0 else number(scores, floors)), np.nan
    without = [number(np.delete(scores, place), np.delete(floors, place)) for place in range(count)]
    return number(scores, floors), float(np.std(without) * np.sqrt(count - 1))


def _stores(subject: Subject) -> list[LatentStore]:
    """Return the latent store of each autoencoder; one that was just made is written first.

    Raises:
        ValueError: a run has none, or one of other weights.
    """
    new = iter(subject.found(NewStore) or [])
    found = []
    for run in subject.runs:
        assert run.folder is not None
        for member, autoencoder in enumerate(run.autoencoders):
            folder = run.folder / store_name(run, member)
            if (own := next(new, None)) is not None:
                own.write(folder)
            elif not (folder / META).is_file():
                raise ValueError(
                    f"{run.folder} has no latent store; make one in the same command, as in eval=[latents,autointerp]"
                )
            store = LatentStore(folder)
            if store.meta.weights != weights_digest(autoencoder):
                raise ValueError(
                    f"{folder} is of another dictionary than the run's; make it again in the same command, as in "
                    "eval=[latents,autointerp]"
                )
            found.append(store)
    return found


def _codes(subject: Subject, autoencoder: Autoencoder, store: LatentStore) -> Codes:
    text = subject.source.text
    assert text is not None
    return context_codes(
        text.model_at, text.sites.input, autoencoder, store.tokens, text.rows_at_once, heartbeat=subject.heartbeat
    )


def _pages(subject: Subject) -> list[dict[str, Callable[[Path], None]]]:
    """Return for each run the writers of pages that do not show the explanations yet; those still to come will."""
    new = iter(subject.found(NewStore) or [])
    found: list[dict[str, Callable[[Path], None]]] = []
    for run in subject.runs:
        assert run.folder is not None
        stores = [next(new, None) for _ in run.autoencoders]
        found.append(
            {
                store_name(run, member): partial(_write_pages, run.folder, run.member(member))
                for member, store in enumerate(stores)
                if store is None or store.has_pages
            }
        )
    return found


def _write_pages(run: Path, member: int | None, folder: Path) -> None:
    from fsae.analysis.latent_pages import write_latent_pages
    from fsae.analysis.origin import Origin

    write_latent_pages(LatentStore(folder), folder, Origin.of(run, member))


def _line(explanation: Explanation) -> dict[str, Any]:
    """Return a latent's explanation and scores."""
    scores = {
        f"{form}{suffix}": _score(explanation, f"{prefix}{test}", score)
        for form, (test, score) in _FORMS.items()
        for prefix, suffix in (("", ""), ("control_", "_shuffled"))
    }
    return {
        "latent": explanation.latent,
        "explanation": explanation.explanation,
        "shuffled": explanation.control_of,
        **scores,
    }


def _renamed(message: str) -> str:
    for option, setting in _OPTIONS.items():
        message = message.replace(option, setting)
    return message

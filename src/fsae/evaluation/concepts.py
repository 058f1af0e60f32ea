"""`concepts`: whether a latent detects a concept in texts, and steers the language model towards it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fsae.evaluation.downstream.concept_detectors import (
    Detected,
    Parts,
    best_latent,
    directions,
    recogniser,
    text_scores,
    word_detector,
)
from fsae.evaluation.downstream.concept_judge import Judge, Judged
from fsae.evaluation.downstream.concept_reft import reft_direction
from fsae.evaluation.downstream.concept_steering import Effect, Push, Steering, outcome, steering_numbers
from fsae.evaluation.downstream.concept_texts import ConceptTexts, axbench, packaged_topics
from fsae.evaluation.downstream.controls import densities_in, random_directions
from fsae.evaluation.downstream.text_activations import Reading, TextActivations, text_activations
from fsae.evaluation.downstream.text_codes import Pooling, pooled, token_codes
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.kept import keeper
from fsae.evaluation.noise import mean_and_noise
from fsae.evaluation.subject import Subject
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.progress import Progress
from fsae.ranges import COUNT_OR_NONE, SEED, between
from fsae.seeds import generator_for, seed_of
from fsae.sources.documents import DatasetFormat, DatasetSettings
from fsae.sources.source import HeldOutText

if TYPE_CHECKING:
    from scipy.sparse import csr_array

log = logging.getLogger(__name__)

# Detectors that are fitted to the labels, and word counts.
_DIRECTIONS = ("diffmean", "probe", "pca", "lat")
_WORDS = "words"
# The direction that is trained through the model, if it is asked for.
_REFT = "reft"
_CONTROLS = {
    "random": "random directions of equal density",
    "diffmean": "the difference of means",
    "probe": "a probe",
    "pca": "the first principal component",
    "lat": "LAT",
    _WORDS: "a bag of words",
    _REFT: "ReFT-r1",
}
_STEERING_CONTROLS = {"random": "a random direction", "diffmean": "the difference of means", _REFT: "ReFT-r1"}
# Positives and negatives that a concept needs: half of them train, half of them test.
_LEAST = 8
# Held-out texts of a concept, and as many others, whose log-probabilities under steering are compared.
_LIKELY = 4
# The file of the judge's answers in the run's folder.
_ANSWERS = "concepts.answers.jsonl"
_PROMPTS = (
    "Let me explain why",
    "Yesterday I read that",
    "The first thing to know is that",
    "My friend asked me about",
    "It is often said that",
    "In this short text we look at",
    "When I think of it, I see",
    "There is a book about",
)


@dataclass(frozen=True, kw_only=True)
class Concepts(Evaluation, group="eval.concepts"):
    """Detection of concepts and steering towards them in AxBench's way (Wu et al., arXiv 2501.17148).

    Detection: the score of a text is the greatest value over its tokens: of a latent's code, or of the product with a
    direction. The latent of a concept is the one with the greatest AUROC on training texts; its AUROC on test texts
    counts, in which hard negatives are negatives. (AxBench's code loses them: its label map has other names for them.)
    `concepts_hard` is AxBench's accuracy on hard negatives: the mean of the accuracies on positives and on hard
    negatives, at Youden's threshold of the training texts.

    Steering: a vector is added to the activations at the site, and the model continues `prompts`. It has the direction
    of the latent's decoder row, and its length is strength times the mean norm of the activations, so that all methods
    and dictionaries at a site choose among the same lengths. `Quality` has three scores from 0 to 1, without a judge:
    concept, by a detector of words that learned from other texts than the vector; fluency; and how likely the unsteered
    answer stays. `concepts_steering` is their harmonic mean for one half of the prompts, at the strength that the other
    half chose: a mean of both ways, whose standard deviation is the noise. This score is fsae's own.
    `concepts_likelihood` is how much more steering raises the log-probability of held-out texts of the concept than of
    others.

    Differences from AxBench: a text is read without a chat template; the text's first token, an attention sink, is left
    out; strengths are no multiples of the greatest code; the signs of PCA and LAT are chosen on training texts; the
    probe is fitted by L-BFGS; all rows are pooled and divided again, so that several divisions give the noise. Hard
    negatives are always in the test part.

    Attributes:
        path: a file, folder, glob or hub name of data in AxBench's layout, as `dataset.path`; null for articles of
            a package, whose concepts are 11 topics, and whose hard negatives are mined by words.
        format, split: of that data set, as `dataset.format` and `dataset.split`.
        concepts: at most.
        texts: of each topic of the package.
        hard: hard negatives of each topic of the package.
        length: tokens of a text that are read, at most.
        steered: concepts towards which the model is steered: the first ones; 0 for no steering.
        strengths: among which each half of the prompts chooses, as multiples of the activations' mean norm.
        prompts: beginnings of texts.
        generated: tokens of a steered text, at most.
        reft_epochs: passes over a concept's texts in which ReFT-r1 is trained, as in AxBench 3; it is measured in the
            first division alone. 0 for none: it takes about a minute per concept on two cores.
        judge, judge_model: address of an endpoint in OpenAI's format, and the model that rates steered texts there;
            null for no judge. The key is read from $FSAE_EXPLAIN_KEY.
        splits: divisions of the texts into halves for training and for testing; their standard deviation is the noise.
        seed: of texts, divisions and pairs.
    """

    path: str | None = None
    format: DatasetFormat = DatasetFormat.parquet
    split: str = "train"
    concepts: int = field(default=10, metadata=between(least=1, most=100_000))
    texts: int = field(default=80, metadata=between(least=8, most=100_000))
    hard: int = field(default=20, metadata=COUNT_OR_NONE)
    length: int = field(default=48, metadata=between(least=2, most=100_000))
    steered: int = field(default=3, metadata=COUNT_OR_NONE)
    strengths: list[float] = field(
        default_factory=lambda: [0.1, 0.2, 0.4, 0.8], metadata=between(above=0, most=1e6, meaning="a strength")
    )
    prompts: list[str] = field(default_factory=lambda: list(_PROMPTS))
    generated: int = field(default=24, metadata=between(least=4, most=100_000))
    reft_epochs: int = field(default=0, metadata=between(least=0, most=10_000))
    judge: str | None = None
    judge_model: str | None = None
    splits: int = field(default=3, metadata=between(least=1, most=100))
    seed: int = field(default=0, metadata=SEED)

    needs: ClassVar[frozenset[str]] = frozenset({"language_model", "one_site"})
    in_sweeps: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = {
        **accompanied("concepts_auroc", Meaning("AUROC of the best latent per concept", better=Better.more), _CONTROLS),
        **accompanied(
            "concepts_hard",
            Meaning("its accuracy on positives and hard negatives", better=Better.more, shown=Shown.files),
            _CONTROLS,
        ),
        "concepts_count": Meaning("concepts", shown=Shown.files),
        **accompanied(
            "concepts_steering", Meaning("score of steering by latents", better=Better.more), _STEERING_CONTROLS
        ),
        **accompanied(
            "concepts_steering_concept",
            Meaning("how well steered texts are recognised", better=Better.more, shown=Shown.files),
            _STEERING_CONTROLS,
            noise=False,
        ),
        **accompanied(
            "concepts_steering_fluency",
            Meaning("fluency of steered texts", better=Better.more, shown=Shown.files),
            _STEERING_CONTROLS,
            noise=False,
        ),
        **accompanied(
            "concepts_steering_answer",
            Meaning("likelihood of the unsteered answer", better=Better.more, shown=Shown.files),
            _STEERING_CONTROLS,
            noise=False,
        ),
        **accompanied(
            "concepts_likelihood",
            Meaning("rise of the concept's texts", "nats/token", better=Better.more, shown=Shown.files),
            _STEERING_CONTROLS,
            noise=False,
        ),
        **accompanied(
            "concepts_judge",
            Meaning("rating of steered texts by a judge, 0 to 2", better=Better.more),
            _STEERING_CONTROLS,
            noise=False,
        ),
        "concepts_detector": Meaning("AUROC of the words that recognise steered texts", shown=Shown.files),
    }

    def __post_init__(self):
        super().__post_init__()
        if (self.judge is None) != (self.judge_model is None):
            raise ValueError(
                "eval.concepts.judge is an address and eval.concepts.judge_model the model there; set both, or none"
            )
        if self.steered and (len(self.prompts) < 2 or not self.strengths):
            raise ValueError(
                f"eval.concepts has {len(self.prompts)} prompts and {len(self.strengths)} strengths; steering needs "
                "two prompts, one of which chooses the strength for the other, and a strength; add them, or set "
                "eval.concepts.steered=0"
            )

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's numbers, and those of each concept.

        Raises:
            ValueError: the texts cannot be read, or a concept has too few of them.
        """
        text = subject.source.text
        assert text is not None
        if self.steered or self.reft_epochs:
            text.model.check_splice(text.site)
        data = self._data()
        with TemporaryDirectory() as elsewhere:
            folder = next((run.folder for run in subject.runs if run.folder is not None), Path(elsewhere))
            judge = None
            if self.judge is not None and self.judge_model is not None:
                judge = Judge(self.judge, self.judge_model, folder / _ANSWERS)
            return self._measured(text, data, judge, subject)

    def _measured(self, text: HeldOutText, data: ConceptTexts, judge: Judge | None, subject: Subject) -> list[Measured]:
        read = self._read(text, data, subject)
        trains = [self._train(data, split) for split in range(self.splits)]
        steps = self.splits * len(data.names) * (1 + 2 * len(subject.autoencoders))
        progress = Progress("detecting concepts", steps, "detectors")

        def beat() -> None:
            progress.advance(1)
            subject.heartbeat()

        content = {"detectors": "eval.concepts", "texts": data.digest, "length": self.length, "seed": self.seed}
        compute = partial(self._fitted, data, read, trains, subject.heartbeat)
        kept = keeper(text)(content | {"splits": self.splits}, compute)
        progress.advance(self.splits * len(data.names))
        shared = {
            name: [[Detected(*each) for each in split] for split in scores.tolist()] for name, scores in kept.items()
        }
        trained = self._trained(text, data, trains[0], subject) if self.reft_epochs else []
        if trained:
            scores = text_scores(read, torch.stack(trained, dim=1).numpy())
            parts = [Parts.of(data, concept, trains[0]) for concept in range(len(trained))]
            shared[_REFT] = [[each.detected(own) for each, own in zip(parts, scores.T, strict=True)]]
        found, steering = [], []
        for autoencoder in subject.autoencoders:
            codes = token_codes(autoencoder, read, subject.heartbeat)
            own = {"latent": self._latents(codes, data, read, trains, beat), **shared}
            rows = autoencoder.W_dec.detach().float().cpu()
            steering.append([rows[each.latent] for each in own["latent"][0][: self.steered]])
            control = random_directions(autoencoder, densities_in(codes), read.vectors, self.seed)
            if control is not None:
                codes = token_codes(control, read, subject.heartbeat)
                own["random"] = self._latents(codes, data, read, trains, beat)
            found.append((_numbers(own), _of_concepts(data.names, own)))
        progress.close()
        if self.steered:
            steered = self._steered(text, data, read, trains[0], steering, trained, judge, subject)
            found = [(a | numbers, _merged(b, more)) for (a, b), (numbers, more) in zip(found, steered, strict=True)]
        return [
            Measured([numbers for numbers, _ in own], content={"concepts": [each for _, each in own]})
            for own in subject.by_run(found)
        ]

    def _data(self) -> ConceptTexts:
        if self.path is None:
            data = packaged_topics(self.concepts, self.texts, self.hard, self.length, self.seed)
        else:
            try:
                data = axbench(DatasetSettings(format=self.format, path=self.path, split=self.split), self.concepts)
            except ValueError as error:
                raise ValueError(f"eval.concepts: {str(error).replace('dataset.', 'eval.concepts.')}") from None
        data.check(_LEAST)
        return data

    def _read(self, text: HeldOutText, data: ConceptTexts, subject: Subject) -> TextActivations:
        reading = Reading(tokens=self.length)
        read = text_activations(text, data.texts, reading, "reading texts of concepts", subject.heartbeat)
        if not text.prepends_bos:
            read = read.of_tokens(read.places > 0)
        return replace(read, vectors=read.vectors.float())

    def _train(self, data: ConceptTexts, split: int) -> Bool[np.ndarray, " texts"]:
        """Return one half of the texts, with half of each concept's positives (or one less)."""
        order = torch.randperm(len(data.texts), generator=generator_for(self.seed, "concepts", split)).numpy()
        # By the first concept of which a text is, so that the halves are alike.
        kinds = np.where(data.positive.any(1), data.positive.argmax(1), len(data.names))[order]
        train = np.zeros(len(order), bool)
        for kind in np.unique(kinds):
            own = order[kinds == kind]
            train[own[: len(own) // 2]] = True
        return train

    def _fitted(
        self,
        data: ConceptTexts,
        read: TextActivations,
        trains: Sequence[Bool[np.ndarray, " texts"]],
        heartbeat: Callable[[], None],
    ) -> dict[str, Float[Tensor, "splits concepts 2"]]:
        """Return how well the fitted detectors do in each split and concept (auroc and hard), by name."""
        found: dict[str, list[list[Detected]]] = {name: [] for name in (*_DIRECTIONS, _WORDS)}
        for split, train in enumerate(trains):
            for each in found.values():
                each.append([])
            for concept in range(len(data.names)):
                parts = Parts.of(data, concept, train)
                fitted = directions(read, parts.train, parts.positive, seed_of(self.seed, split, concept))
                scores = text_scores(read, np.stack([fitted[name] for name in _DIRECTIONS], axis=1))
                texts = [data.texts[number] for number in np.flatnonzero(parts.train)]
                words = word_detector(texts, parts.positive[parts.train])(data.texts)
                for name, own in zip(found, [*scores.T, words], strict=True):
                    found[name][-1].append(parts.detected(own))
                heartbeat()
        return {
            name: torch.tensor([[(each.auroc, each.hard) for each in split] for split in splits], dtype=torch.float64)
            for name, splits in found.items()
        }

    def _trained(
        self, text: HeldOutText, data: ConceptTexts, train: Bool[np.ndarray, " texts"], subject: Subject
    ) -> list[Float[Tensor, " d_in"]]:
        """Return the direction of each concept that ReFT-r1 trains on its positives."""
        progress, found = Progress("training ReFT-r1", len(data.names), "concepts"), []
        for concept in range(len(data.names)):
            parts = Parts.of(data, concept, train)
            texts = [data.texts[number] for number in np.flatnonzero(parts.train & parts.positive)]
            seed = seed_of(self.seed, concept)
            found.append(reft_direction(text, texts, self.length, self.reft_epochs, seed, subject.heartbeat))
            progress.advance(1)
        progress.close()
        return found

    def _latents(
        self,
        codes: "csr_array",
        data: ConceptTexts,
        read: TextActivations,
        trains: Sequence[Bool[np.ndarray, " texts"]],
        beat: Callable[[], None],
    ) -> list[list[Detected]]:
        """Return how well the best latent does in each split and concept."""
        of_texts = pooled(codes, read, Pooling.max)
        found = []
        for train in trains:
            own = []
            for concept in range(len(data.names)):
                parts = Parts.of(data, concept, train)
                latent = best_latent(of_texts, parts.train, parts.positive)
                own.append(parts.detected(of_texts[:, [latent]].toarray()[:, 0])._replace(latent=latent))
                beat()
            found.append(own)
        return found

    def _steered(
        self,
        text: HeldOutText,
        data: ConceptTexts,
        read: TextActivations,
        train: Bool[np.ndarray, " texts"],
        of_latents: Sequence[Sequence[Float[Tensor, " d_in"]]],
        trained: Sequence[Float[Tensor, " d_in"]],
        judge: Judge | None,
        subject: Subject,
    ) -> list[tuple[dict[str, float], dict[str, Any]]]:
        """Return the numbers of steering by each autoencoder's latents, and those of each concept."""
        concepts = range(min(self.steered, len(data.names)))
        detectors, areas = zip(*(recogniser(data, concept, train) for concept in concepts), strict=True)
        parts = [Parts.of(data, concept, train) for concept in concepts]
        fitted = [directions(read, each.train, each.positive, self.seed)["diffmean"] for each in parts]
        draw = generator_for(self.seed, "random steering")
        shared = {
            "diffmean": [torch.from_numpy(each).float() for each in fitted],
            "random": [torch.randn(len(each), generator=draw) for each in fitted],
        }
        if trained:
            shared[_REFT] = list(trained[: len(concepts)])
        length = float(read.vectors.norm(dim=1).mean())
        steering = Steering(text, self.prompts, self.generated, self.seed, subject.heartbeat, keeper(text))
        progress = Progress("steering", len(concepts) * (len(shared) + len(of_latents)), "directions")

        def scored(along: Sequence[Float[Tensor, " d_in"]]) -> list[Effect]:
            effects = []
            for push in _pushes(along, length):
                steered = steering.steered(push, self.strengths)
                found = outcome(steered, steering.plain, detectors[push.concept])
                held_out = [
                    [data.texts[number] for number in np.flatnonzero(mask[:, push.concept] & ~train)[:_LIKELY]]
                    for mask in (data.positive, data.negative)
                ]
                rises = [
                    steering.likelihood(push, self.strengths[strength], *held_out)
                    for strength in sorted(set(found.strengths))
                ]
                effects.append(Effect(steered, found, float(np.mean(rises))))
                progress.advance(1)
            return effects

        controls = {name: scored(along) for name, along in shared.items()}
        found = []
        for along in of_latents:
            own = {"latent": scored(along), **controls}
            numbers = {"concepts_detector": float(np.mean(areas))}
            for name, effects in own.items():
                numbers |= steering_numbers(effects, "" if name == "latent" else f"_{name}")
            if judge is not None:
                numbers |= self._judged(judge, data.names, own)
            found.append((numbers, self._steering_of_concepts(data.names, own)))
        progress.close()
        return found

    def _judged(self, judge: Judge, names: Sequence[str], own: Mapping[str, Sequence[Effect]]) -> dict[str, float]:
        """Return the mean ratings; nothing if the judge fails."""
        found = {}
        for name, effects in own.items():
            judged = [
                Judged(names[concept], self.prompts[prompt], effect.steered.texts[strength][prompt])
                for concept, effect in enumerate(effects)
                for strength, prompts in zip(effect.outcome.strengths, effect.outcome.scored, strict=True)
                for prompt in prompts
            ]
            try:
                ratings = [rating for rating in judge.ratings(judged) if rating is not None]
            except ValueError as error:
                log.warning("eval.concepts: steered texts are not judged: %s", error)
                return {}
            if ratings:
                found["concepts_judge" if name == "latent" else f"concepts_judge_{name}"] = float(np.mean(ratings))
        return found

    def _steering_of_concepts(
        self, names: Sequence[str], own: Mapping[str, Sequence[Effect]]
    ) -> dict[str, dict[str, Any]]:
        """Return by concept and kind of vector: score, the strengths that were chosen, and a text at each."""
        return {
            names[concept]: {
                "steering": {
                    name: {
                        "score": float(np.mean([half.score for half in effects[concept].outcome.halves])),
                        "strengths": [self.strengths[each] for each in effects[concept].outcome.strengths],
                        "texts": [
                            self.prompts[prompts[0]] + effects[concept].steered.texts[strength][prompts[0]]
                            for strength, prompts in zip(
                                effects[concept].outcome.strengths, effects[concept].outcome.scored, strict=True
                            )
                        ],
                    }
                    for name, effects in own.items()
                }
            }
            for concept in range(len(own["latent"]))
        }


def _numbers(own: Mapping[str, Sequence[Sequence[Detected]]]) -> dict[str, float]:
    """Return means over splits and concepts, and the noise of the latents' over splits."""
    found = {"concepts_count": float(len(own["latent"][0]))}
    for name, detected in own.items():
        for number in ("auroc", "hard"):
            values = np.array([[getattr(each, number) for each in split] for split in detected])
            # A concept without a hard negative has no such accuracy.
            values = values[:, ~np.isnan(values).any(0)]
            if not values.size:
                continue
            of_splits = values.mean(1)
            if name == "latent":
                found |= mean_and_noise(f"concepts_{number}", of_splits)
            else:
                found[f"concepts_{number}_{name}"] = float(of_splits.mean())
    return found


def _of_concepts(names: Sequence[str], own: Mapping[str, Sequence[Sequence[Detected]]]) -> dict[str, Any]:
    """Return the numbers of each concept, by its name: means over splits, and the latent of the first one."""
    return {
        name: {
            "latent": own["latent"][0][concept].latent,
            "auroc": {each: float(np.mean([split[concept].auroc for split in of])) for each, of in own.items()},
        }
        for concept, name in enumerate(names)
    }


def _pushes(directions: Sequence[Float[Tensor, " d_in"]], length: float) -> list[Push]:
    """Return vectors of one length, one per concept."""
    return [Push(concept, length * each / each.norm().clamp(min=1e-12)) for concept, each in enumerate(directions)]


def _merged(of_concepts: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of each concept with further ones."""
    return {name: {**each, **more.get(name, {})} for name, each in of_concepts.items()}

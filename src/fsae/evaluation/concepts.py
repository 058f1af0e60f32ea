"""`concepts`: whether a latent detects a concept in texts, and steers the language model towards it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from fsae.evaluation.downstream.concept_detectors import (
    accuracy_at,
    auroc,
    best_latent,
    directions,
    text_scores,
    word_detector,
)
from fsae.evaluation.downstream.concept_texts import ConceptTexts, axbench, packaged_topics
from fsae.evaluation.downstream.text_activations import Reading, TextActivations, text_activations
from fsae.evaluation.downstream.text_codes import Pooling, pooled, token_codes
from fsae.evaluation.evaluation import Evaluation, Measured
from fsae.evaluation.subject import Subject
from fsae.latents.control import control_of
from fsae.outputs.results import Better, Meaning, Shown, accompanied
from fsae.progress import Progress
from fsae.ranges import COUNT_OR_NONE, SEED, between
from fsae.seeds import generator_for, seed_of
from fsae.sources.documents import DatasetFormat, DatasetSettings
from fsae.sources.source import HeldOutText

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Detectors that are fitted to the labels, and word counts.
_DIRECTIONS = ("diffmean", "probe", "pca", "lat")
_WORDS = "words"
_CONTROLS = {
    "random": "random directions of equal density",
    "diffmean": "the difference of means",
    "probe": "a probe",
    "pca": "the first principal component",
    "lat": "LAT",
    _WORDS: "a bag of words",
}


@dataclass(frozen=True, kw_only=True)
class Concepts(Evaluation, group="eval.concepts"):
    """Detection of concepts in AxBench's way (Wu et al., arXiv 2501.17148).

    The score of a text is the greatest value over its tokens: of a latent's code, or of the product with a direction.
    The latent of a concept is the one with the greatest AUROC on training texts; its AUROC on test texts counts, in
    which hard negatives are negatives. (AxBench's code loses them: its label map has other names for them.)
    `concepts_hard` is AxBench's accuracy on hard negatives: the mean of the accuracies on positives and on hard
    negatives, at Youden's threshold of the training texts.

    Differences from AxBench: a text is read without a chat template; the text's first token, an attention sink, is left
    out; the signs of PCA and LAT are chosen on training texts; the probe is fitted by L-BFGS; all rows are pooled and
    divided again, so that several divisions give the noise. Hard negatives are always in the test part.

    Attributes:
        path: a file, folder, glob or hub name of data in AxBench's layout, as `dataset.path`; null for articles of
            a package, whose concepts are 11 topics, and whose hard negatives are mined by words.
        format, split: of that data set, as `dataset.format` and `dataset.split`.
        concepts: at most.
        texts: of each topic of the package.
        hard: hard negatives of each topic of the package.
        length: tokens of a text that are read, at most.
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
    splits: int = field(default=3, metadata=between(least=1, most=100))
    seed: int = field(default=0, metadata=SEED)

    needs: ClassVar[frozenset[str]] = frozenset({"language_model"})
    in_sweeps: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = {
        **accompanied("concepts_auroc", Meaning("AUROC of the best latent per concept", better=Better.more), _CONTROLS),
        **accompanied(
            "concepts_hard",
            Meaning("its accuracy on positives and hard negatives", better=Better.more, shown=Shown.files),
            _CONTROLS,
        ),
        "concepts_count": Meaning("concepts", shown=Shown.files),
    }

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's numbers, and those of each concept.

        Raises:
            ValueError: the texts cannot be read, or a concept has too few of them.
        """
        text = subject.source.text
        assert text is not None
        data = self._data()
        read = self._read(text, data, subject)
        trains = [self._train(data, split) for split in range(self.splits)]
        steps = self.splits * len(data.names) * (1 + 2 * len(subject.autoencoders))
        progress = Progress("detecting concepts", steps, "detectors")

        def beat() -> None:
            progress.advance(1)
            subject.heartbeat()

        shared = self._fitted(data, read, trains, beat)
        found = []
        for autoencoder in subject.autoencoders:
            codes = token_codes(autoencoder, read, subject.heartbeat)
            own = {"latent": self._latents(codes, data, read, trains, beat), **shared}
            densities = np.bincount(codes.indices, minlength=autoencoder.d_sae) / len(read.vectors)
            if densities.any():
                control = control_of(densities, read.vectors, autoencoder.d_in, autoencoder.d_sae, self.seed)
                codes = token_codes(control, read, subject.heartbeat)
                own["random"] = self._latents(codes, data, read, trains, beat)
            found.append((_numbers(own), _of_concepts(data.names, own)))
        progress.close()
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
        beat: Callable[[], None],
    ) -> dict[str, list[list["_Detected"]]]:
        """Return how well the fitted detectors do in each split and concept, by name."""
        found: dict[str, list[list[_Detected]]] = {name: [] for name in (*_DIRECTIONS, _WORDS)}
        for split, train in enumerate(trains):
            for each in found.values():
                each.append([])
            for concept in range(len(data.names)):
                parts = _Parts.of(data, concept, train)
                fitted = directions(read, parts.train, parts.positive, seed_of(self.seed, split, concept))
                scores = text_scores(read, np.stack([fitted[name] for name in _DIRECTIONS], axis=1))
                texts = [data.texts[number] for number in np.flatnonzero(parts.train)]
                words = word_detector(texts, parts.positive[parts.train])(data.texts)
                for name, own in zip(found, [*scores.T, words], strict=True):
                    found[name][-1].append(parts.detected(own))
                beat()
        return found

    def _latents(
        self,
        codes: "csr_array",
        data: ConceptTexts,
        read: TextActivations,
        trains: Sequence[Bool[np.ndarray, " texts"]],
        beat: Callable[[], None],
    ) -> list[list["_Detected"]]:
        """Return how well the best latent does in each split and concept."""
        of_texts = pooled(codes, read, Pooling.max)
        found = []
        for train in trains:
            own = []
            for concept in range(len(data.names)):
                parts = _Parts.of(data, concept, train)
                latent = best_latent(of_texts, parts.train, parts.positive)
                own.append(parts.detected(of_texts[:, [latent]].toarray()[:, 0])._replace(latent=latent))
                beat()
            found.append(own)
        return found


# Positives and negatives that a concept needs: half of them train, half of them test.
_LEAST = 8


class _Detected(NamedTuple):
    """The detection of a concept in the test texts.

    Attributes:
        auroc: with hard negatives among the negatives.
        hard: mean of the accuracies on positives and on hard negatives; NaN without any.
        latent: the number of the latent that detects; -1 for another detector.
    """

    auroc: float
    hard: float
    latent: int = -1


class _Parts(NamedTuple):
    """The texts of a concept: those that train a detector, those that test it, and which are positive."""

    train: Bool[np.ndarray, " texts"]
    test: Bool[np.ndarray, " texts"]
    hard: Bool[np.ndarray, " texts"]
    positive: Bool[np.ndarray, " texts"]

    @classmethod
    def of(cls, data: ConceptTexts, concept: int, train: Bool[np.ndarray, " texts"]) -> "_Parts":
        """Return the parts of a concept."""
        positive, hard = data.positive[:, concept], data.hard[:, concept]
        known = positive | data.negative[:, concept]
        return cls(known & train, (known & ~train) | hard, hard, positive)

    def detected(self, scores: Float[np.ndarray, " texts"]) -> _Detected:
        """Return how well scores detect the concept."""
        area = auroc(scores[self.test][:, None], self.positive[self.test])[0]
        hard = float("nan")
        if self.hard.any():
            among = self.hard | (self.test & self.positive)
            hard = accuracy_at(scores, self.train, self.positive, among)
        return _Detected(float(area), hard)


def _numbers(own: Mapping[str, Sequence[Sequence[_Detected]]]) -> dict[str, float]:
    """Return means over splits and concepts, and the latents' standard deviations over splits."""
    found = {"concepts_count": float(len(own["latent"][0]))}
    for name, detected in own.items():
        for number in ("auroc", "hard"):
            of_splits = np.array([np.mean([getattr(each, number) for each in split]) for split in detected])
            if np.isnan(of_splits).any():
                continue
            if name == "latent":
                found[f"concepts_{number}"] = float(of_splits.mean())
                found[f"concepts_{number}_noise"] = float(of_splits.std(ddof=1)) if len(of_splits) > 1 else 0.0
            else:
                found[f"concepts_{number}_{name}"] = float(of_splits.mean())
    return found


def _of_concepts(names: Sequence[str], own: Mapping[str, Sequence[Sequence[_Detected]]]) -> dict[str, Any]:
    """Return the numbers of each concept, by its name: means over splits, and the latent of the first one."""
    return {
        name: {
            "latent": own["latent"][0][concept].latent,
            "auroc": {each: float(np.mean([split[concept].auroc for split in of])) for each, of in own.items()},
        }
        for concept, name in enumerate(names)
    }

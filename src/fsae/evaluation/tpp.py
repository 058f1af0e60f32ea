"""`tpp`: whether the latents of one class can be ablated without loss for the probes of the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import numpy as np

from fsae.evaluation.downstream.ablation_evaluation import AblationEvaluation
from fsae.evaluation.downstream.hub_texts import hub_texts
from fsae.evaluation.downstream.labelled_texts import LabelledTexts
from fsae.evaluation.downstream.packaged_texts import packaged_classes
from fsae.evaluation.downstream.probe import Probe
from fsae.evaluation.downstream.probe_ablation import (
    DecodedTexts,
    ProbedRows,
    Task,
    ablation_meanings,
    check_counts,
    strongest,
)
from fsae.evaluation.evaluation import Measured
from fsae.evaluation.subject import Subject
from fsae.outputs.results import Meaning
from fsae.ranges import between
from fsae.seeds import seed_of


class TppData(Enum):
    """Texts of several classes.

    Attributes:
        packaged: news by topic and medical abstracts by disease, of the package sae-probes.
        hub: SAEBench's: biographies by profession and reviews by category.
    """

    packaged = "packaged"
    hub = "hub"


_SETS = {TppData.packaged: ("97_news_class", "101_disease_class"), TppData.hub: ("bias_in_bios_1", "amazon_categories")}


@dataclass(frozen=True, kw_only=True)
class Tpp(AblationEvaluation, group="eval.tpp"):
    """Targeted probe perturbation (Karvonen et al., SAEBench, arXiv 2503.09532). Do not rank dictionaries by it.

    A linear probe per class is trained on mean activations of texts. A latent's effect on a class's probe is the
    difference between its mean codes in texts of the class and in others, at least 0, times what it adds to the probe's
    logit. The n latents with the largest effects are ablated. The score is the accuracy that the class's own probe
    loses, minus what the other probes lose on the average, as a mean over classes.

    An audit (Chanin 2026, arXiv 2605.18229) found that TPP fails with SAEBench's settings: its numbers change with
    the seed of a fixed dictionary, disagree with the known features of synthetic ones, and do not distinguish
    dictionaries. Therefore it has no better direction, and no table shows it.

    Differences from SAEBench: other texts by default; ablated latents have a positive effect; positions that are
    left out are left out of ablated activations, too; negatives of a test are drawn once; each repeat has rows and
    probes of its own.

    Attributes:
        data: where the texts come from.
        sets: names of data sets; empty for all.
        path: for data=hub a folder with copies of the data sets, or null.
        n: numbers of ablated latents.
        train, test: rows of a probe, half of them of its class.
        text_tokens: tokens of a text that are read, the first ones.
        repeats: draws of rows and probes; the noise is over them.
        seed: of rows, probes and control.
    """

    data: TppData = TppData.packaged
    test: int = field(default=200, metadata=between(least=2, most=10**7))

    needs: ClassVar[frozenset[str]] = frozenset({"language_model", "one_site"})
    in_sweeps: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = ablation_meanings("tpp")

    @property
    def known_sets(self) -> Sequence[str]:
        return _SETS[self.data]

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's scores: means over data sets, and the noise over repeats.

        Raises:
            ValueError: a data set is not there or a class has too few texts, or a dictionary has too few latents.
        """
        check_counts("tpp", self.n, subject)
        tasks = [self._task(each) for each in self._sets()]
        return self.measured(subject, tasks, self._score, "tpp", "tpp_sets")

    @property
    def _per_class(self) -> int:
        return (self.train + 1) // 2 + (self.test + 1) // 2

    def _sets(self) -> Iterator[LabelledTexts]:
        """Return the data sets with as many texts of each class, and no text twice."""
        for name in self.chosen_sets:
            if self.data is TppData.packaged:
                texts = packaged_classes(name)
            else:
                # More than are needed, because a text may occur twice.
                texts = hub_texts(name, "eval.tpp", 2 * self._per_class, self.path)
            found = texts.sample(2 * self._per_class, self.seed)
            if min(found.counts) < self._per_class:
                raise ValueError(
                    f"data set {name} has {min(found.counts)} texts of a class, and {self._per_class} are needed; "
                    "lower eval.tpp.train or eval.tpp.test"
                )
            yield found

    def _task(self, texts: LabelledTexts) -> Task:
        rows = [
            class_rows(texts.labels, self.train // 2, self.test // 2, seed_of(self.seed, texts.name, repeat) % 2**32)
            for repeat in range(self.repeats)
        ]
        named = [{texts.classes[label]: own for label, own in enumerate(each)} for each in rows]
        return Task(texts.name, texts.texts, named)

    def _score(
        self, texts: DecodedTexts, probes: Mapping[str, Probe], rows: Mapping[str, ProbedRows]
    ) -> dict[str, np.ndarray]:
        return tpp_scores(texts, probes, rows, self.n)


def class_rows(labels: np.ndarray, train: int, test: int, seed: int) -> list[ProbedRows]:
    """Return the rows of each class's probe: as many of the class as of all others together.

    Args:
        labels: the class of each text.
        train, test: texts of the class.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    classes = [generator.permutation(np.flatnonzero(labels == label)) for label in range(labels.max() + 1)]
    parts = [[own[:train] for own in classes], [own[train : train + test] for own in classes]]
    found = []
    for label in range(len(classes)):
        drawn = []
        for part, size in zip(parts, (train, test), strict=True):
            of_each = -(-size // (len(classes) - 1))
            others = [generator.permutation(own)[:of_each] for place, own in enumerate(part) if place != label]
            negatives = generator.permutation(np.concatenate(others))[:size]
            drawn.append((np.concatenate([part[label], negatives]), np.repeat([1, 0], size)))
        (train_rows, train_labels), (test_rows, test_labels) = drawn
        found.append(ProbedRows(train_rows, test_rows, train_labels, test_labels))
    return found


def tpp_scores(
    texts: DecodedTexts, probes: Mapping[str, Probe], rows: Mapping[str, ProbedRows], counts: Sequence[int]
) -> dict[str, np.ndarray]:
    """Return TPP for each number of ablated latents, and its two parts.

    Args:
        texts: activations and codes.
        probes: of each class.
        rows: of each probe.
        counts: numbers of ablated latents.

    Returns:
        "tpp": the mean over classes of intended minus unintended; "intended": the accuracy that a class's probe loses;
        "unintended": what the others lose, as a mean.
    """
    clean = {
        name: probe.accuracy(texts.vectors[rows[name].test], rows[name].test_labels) for name, probe in probes.items()
    }
    intended, unintended = [], []
    for name, probe in probes.items():
        order = strongest(texts.effects(probe, rows[name], one_sided=True), max(counts))
        lost = {
            each: clean[each] - texts.accuracies(other, rows[each], order, counts) for each, other in probes.items()
        }
        intended.append(lost.pop(name))
        unintended.append(np.mean(list(lost.values()), axis=0))
    own, others = np.mean(intended, axis=0), np.mean(unintended, axis=0)
    return {"tpp": own - others, "intended": own, "unintended": others}

"""`scr`: whether ablating the latents of an unwanted attribute repairs a probe that relied on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np

from fsae.evaluation.downstream.ablation_evaluation import AblationEvaluation
from fsae.evaluation.downstream.paired_texts import (
    HUB_PAIRS,
    PACKAGED_PAIRS,
    QUADRANTS,
    PairedTexts,
    Quadrant,
    hub_pairs,
    packaged_pairs,
)
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
from fsae.seeds import seed_of

# A smaller difference between the clean and the biased probe leaves nothing to repair, and the score is 0.
_LEAST = 0.001


class ScrData(Enum):
    """Texts with two attributes.

    Attributes:
        packaged: two topics in two styles: science in comments or an encyclopedia, culture in news or an encyclopedia.
        hub: SAEBench's: biographies by profession and gender, and reviews by category and stars.
    """

    packaged = "packaged"
    hub = "hub"


_SETS = {ScrData.packaged: PACKAGED_PAIRS, ScrData.hub: tuple(HUB_PAIRS)}


@dataclass(frozen=True, kw_only=True)
class Scr(AblationEvaluation, group="eval.scr"):
    """Spurious correlation removal (Karvonen et al., SAEBench, arXiv 2503.09532). Do not rank dictionaries by it.

    A biased probe is trained on texts in which two attributes agree: all nurses are women, all professors men. The n
    latents with the largest effects on a probe of the one attribute are ablated; an effect is the size of the
    difference of mean codes times what the latent adds to the probe's logit. The score is
    (A_ablated - A_biased) / (A_clean - A_biased): accuracies for the other attribute on balanced texts, of the biased
    probe with and without those latents, and of a probe trained for this attribute. It is 0 if A_clean exceeds A_biased
    by less than 0.001. Of the two directions the one counts whose A_biased is lower; if they are equal, their mean.
    It can be negative or exceed 1.

    An audit (Chanin 2026, arXiv 2605.18229) found that SCR fails with SAEBench's settings: its numbers change with
    the seed of a fixed dictionary, disagree with the known features of synthetic ones, and do not distinguish
    dictionaries. Therefore it has no better direction, and no table shows it.

    Differences from SAEBench: other texts by default; a text is in one part only, so test texts of the hub's data are
    training texts there; each repeat has rows and probes of its own.

    Attributes:
        data: where the texts come from.
        sets: names of data sets; empty for all.
        path: for data=hub a folder with copies of the data sets, or null.
        n: numbers of ablated latents.
        train, test: rows of a probe, a quarter of them of each combination of the two attributes.
        text_tokens: tokens of a text that are read, the first ones.
        repeats: draws of rows and probes; the noise is over them.
        seed: of rows, probes and control.
    """

    data: ScrData = ScrData.packaged

    needs: ClassVar[frozenset[str]] = frozenset({"language_model", "one_site"})
    in_sweeps: ClassVar[bool] = False
    meanings: ClassVar[dict[str, Meaning]] = ablation_meanings("scr")

    @property
    def known_sets(self) -> Sequence[str]:
        return _SETS[self.data]

    def measure(self, subject: Subject) -> list[Measured]:
        """Return every autoencoder's scores: means over pairs, and the noise over repeats.

        Raises:
            ValueError: a data set is not there or a quadrant has too few texts, or a dictionary has too few latents.
        """
        check_counts("scr", self.n, subject)
        try:
            tasks = [self._task(each.sample(self._counts, self.seed)) for each in self._pairs()]
        except ValueError as error:
            raise ValueError(f"eval.scr: {error}") from error
        return self.measured(subject, tasks, self._score, "scr", "scr_pairs")

    @property
    def _counts(self) -> dict[Quadrant, int]:
        """Return how many texts of each quadrant are read: twice as many of those in which the attributes agree."""
        one = self.train // 4 + self.test // 4
        return {quadrant: one * (2 if quadrant[0] == quadrant[1] else 1) for quadrant in QUADRANTS}

    def _pairs(self) -> list[PairedTexts]:
        names = self.chosen_sets
        if self.data is ScrData.packaged:
            return [packaged_pairs(name) for name in names]
        # More than are needed, because a text may occur twice.
        counts = {quadrant: 2 * count for quadrant, count in self._counts.items()}
        return [pair for name in names for pair in hub_pairs(name, counts, self.path)]

    def _task(self, pairs: PairedTexts) -> Task:
        texts = [text for quadrant in QUADRANTS for text in pairs.texts[quadrant]]
        lengths = [len(pairs.texts[quadrant]) for quadrant in QUADRANTS]
        attributes = np.repeat(np.array(QUADRANTS), lengths, axis=0)
        rows = [
            pair_rows(attributes, self.train // 4, self.test // 4, seed_of(self.seed, pairs.name, repeat) % 2**32)
            for repeat in range(self.repeats)
        ]
        return Task(pairs.name, texts, rows)

    def _score(
        self, texts: DecodedTexts, probes: Mapping[str, Probe], rows: Mapping[str, ProbedRows]
    ) -> dict[str, np.ndarray]:
        return scr_scores(texts, probes, rows, self.n)


def pair_rows(attributes: np.ndarray, train: int, test: int, seed: int) -> dict[str, ProbedRows]:
    """Return the rows of the probes of both attributes, "first" and "second", and of the "biased" one.

    The first two have as many texts of each quadrant. The biased one has those in which the attributes agree, twice as
    many of each.

    Args:
        attributes: (texts, 2) of 0 and 1.
        train, test: texts of a quadrant.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    balanced: list[list[np.ndarray]] = [[], []]
    agreeing: list[list[np.ndarray]] = [[], []]
    for quadrant in QUADRANTS:
        own = generator.permutation(np.flatnonzero((attributes == quadrant).all(1)))
        agrees = quadrant[0] == quadrant[1]
        begin = train * 2 if agrees else train
        for part, rows, size in zip((0, 1), (own[:begin], own[begin:]), (train, test), strict=True):
            balanced[part].append(rows[:size])
            if agrees:
                agreeing[part].append(rows[: 2 * size])

    def of(parts: list[list[np.ndarray]], attribute: int) -> ProbedRows:
        fitted, tested = (np.concatenate(each) for each in parts)
        return ProbedRows(fitted, tested, attributes[fitted, attribute], attributes[tested, attribute])

    return {"first": of(balanced, 0), "second": of(balanced, 1), "biased": of(agreeing, 0)}


def scr_scores(
    texts: DecodedTexts, probes: Mapping[str, Probe], rows: Mapping[str, ProbedRows], counts: Sequence[int]
) -> dict[str, np.ndarray]:
    """Return SCR for each number of ablated latents, and that of both directions.

    Args:
        texts: activations and codes.
        probes: of the first attribute, of the second one and of both.
        rows: of each probe.
        counts: numbers of ablated latents.

    Returns:
        "dir1": latents of the second attribute are ablated, and accuracies are for the first one; "dir2": the reverse;
        "scr": the direction in which the biased probe is worse.
    """
    biased, found, before = probes["biased"], [], []
    for kept, ablated in (("first", "second"), ("second", "first")):
        own, test = rows[kept], texts.vectors[rows[kept].test]
        order = strongest(texts.effects(probes[ablated], rows[ablated], one_sided=False), max(counts))
        with_bias, clean = (probe.accuracy(test, own.test_labels) for probe in (biased, probes[kept]))
        repaired = texts.accuracies(biased, own, order, counts)
        missing = clean - with_bias
        found.append((repaired - with_bias) / missing if missing >= _LEAST else np.zeros(len(counts)))
        before.append(with_bias)
    score = np.mean(found, axis=0) if before[0] == before[1] else found[int(np.argmin(before))]
    return {"scr": score, "dir1": found[0], "dir2": found[1]}

"""Questions: a label of some texts, and the rows by which it is learned and tested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

import numpy as np
from jaxtyping import Int

from fsae.evaluation.downstream.labelled_texts import LabelledTexts
from fsae.evaluation.downstream.splits import Split, split, split_by_group
from fsae.seeds import seed_of


class Case(Enum):
    """A difficulty of a question's training rows.

    Attributes:
        normal: none.
        scarce: few rows.
        imbalanced: another share of class 1, among the test rows, too.
        mislabelled: some labels are wrong.
    """

    normal = "normal"
    scarce = "scarce"
    imbalanced = "imbalanced"
    mislabelled = "mislabelled"


# A case, and the number of rows or the share that it has.
Difficulty = tuple[Case, float]
NORMAL: Difficulty = (Case.normal, 0.0)


@dataclass(frozen=True, eq=False)
class Question:
    """A label of two classes of some of a data set's texts.

    Attributes:
        name: of the question.
        rows: its texts among those of the data set.
        labels: of its rows, 0 or 1.
        splits: of its rows, for each difficulty and repeat.
    """

    name: str
    rows: Int[np.ndarray, " rows"]
    labels: Int[np.ndarray, " rows"]
    splits: Mapping[Difficulty, Sequence[Split]]


def questions_about(
    texts: LabelledTexts, train: int, test: int, difficulties: Sequence[Difficulty], repeats: int, seed: int
) -> list[Question]:
    """Return the questions about a data set: one, or each class against the others if there are more than two.

    The others are as many texts as the class has, the same number of each other class, as in SAEBench.

    Args:
        texts: the data set.
        train, test: rows of a question.
        difficulties: of the training rows.
        repeats: splits of each difficulty.
        seed: of the rows and the splits.

    Raises:
        ValueError: a class has too few texts.
    """
    found = []
    for label in range(len(texts.classes)) if len(texts.classes) > 2 else [1]:
        name, rows = texts.name, np.arange(len(texts))
        if len(texts.classes) > 2:
            name, rows = f"{texts.name}: {texts.classes[label]}", _against_others(texts, label, seed)
        labels = (texts.labels[rows] == label).astype(np.int64)
        groups = None if texts.groups is None else texts.groups[rows]
        splits: dict[Difficulty, list[Split]] = {each: [] for each in difficulties}
        try:
            for repeat in range(repeats):
                own = seed_of(seed, repeat, name) % 2**32
                for each, kept in splits.items():
                    kept.append(_split(labels, groups, train, test, each, own))
        except ValueError as error:
            raise ValueError(f"data set {name}: {error}") from error
        found.append(Question(name, rows, labels, splits))
    return found


def _against_others(texts: LabelledTexts, label: int, seed: int) -> Int[np.ndarray, " rows"]:
    generator = np.random.default_rng(seed_of(seed, texts.name, label) % 2**32)
    own = np.flatnonzero(texts.labels == label)
    others = [each for each in range(len(texts.classes)) if each != label]
    of_each = -(-len(own) // len(others))
    rest = [generator.permutation(np.flatnonzero(texts.labels == each))[:of_each] for each in others]
    return np.concatenate([own, *rest])


def _split(
    labels: np.ndarray, groups: np.ndarray | None, train: int, test: int, difficulty: Difficulty, seed: int
) -> Split:
    case, value = difficulty
    draw = split if groups is None else partial(split_by_group, groups=groups)
    if case is Case.imbalanced:
        return draw(labels, train=train, test=test, seed=seed, share=value)
    normal = draw(labels, train=train, test=test, seed=seed)
    if case is Case.scarce:
        return normal.first(int(value))
    return normal.mislabelled(value, seed) if case is Case.mislabelled else normal

"""Labelled texts: the data of a probe, from packages, files or the hub."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from fsae.evaluation.kept import digest_of_texts
from fsae.seeds import seed_of
from fsae.sources.documents import DatasetSettings, Document, open_documents
from fsae.sources.shard import Part


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Texts that have a class each.

    Attributes:
        name: of the data set.
        texts: the texts.
        labels: the number of each text's class.
        classes: the names of the classes in their order. Of two classes the second is the positive one.
        groups: the number of each text's group, such as the file that it is from; None if texts are not related. No
            group has texts among training rows and among test rows.
    """

    name: str
    texts: Sequence[str]
    labels: Int[np.ndarray, " texts"]
    classes: Sequence[str]
    groups: Int[np.ndarray, " texts"] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, rows: Int[np.ndarray, " kept"]) -> "LabelledTexts":
        """Return some of the texts, in this order."""
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, texts=[self.texts[row] for row in rows], labels=self.labels[rows], groups=groups)

    def distinct(self) -> "LabelledTexts":
        """Return each text once, and none that has two different labels.

        A text in the training rows and in the test rows would be found by memory.
        """
        labels: dict[str, set[int]] = {}
        first: dict[str, int] = {}
        for row, (text, label) in enumerate(zip(self.texts, self.labels.tolist(), strict=True)):
            first.setdefault(text, row)
            labels.setdefault(text, set()).add(label)
        return self.of(np.array([row for text, row in first.items() if len(labels[text]) == 1], dtype=np.int64))

    def balanced(self, most: int, seed: int) -> "LabelledTexts":
        """Return as many texts of each class, at most so many together, drawn at random and kept in their order."""
        per_class = min([most // len(self.classes), *self.counts])
        generator = np.random.default_rng(seed)
        rows = [
            generator.permutation(np.flatnonzero(self.labels == label))[:per_class]
            for label in range(len(self.classes))
        ]
        return self.of(np.sort(np.concatenate(rows)))

    def sample(self, count: int, seed: int) -> "LabelledTexts":
        """Return at least `count` texts of two classes, no text twice and as many of each class, if there are so many.

        A data set of more classes has as many texts of each. Evaluations with equal seeds get the same texts, whose
        activations are then read once.
        """
        of_class = (count + 1) // 2
        return self.distinct().balanced(of_class * len(self.classes), seed_of(seed, self.name) % 2**32)

    @property
    def digest(self) -> str:
        """Return what distinguishes these texts and labels from others; draws depend on the name, too."""
        return digest_of_texts([self.name, *self.classes, str(self.labels.tolist()), *self.texts])

    @property
    def counts(self) -> list[int]:
        """Return the number of texts of each class."""
        return np.bincount(self.labels, minlength=len(self.classes)).tolist()


def labelled(name: str, pairs: Iterable[tuple[str, Any]]) -> LabelledTexts:
    """Return the texts that are not empty, with classes in the order of their labels.

    Args:
        name: of the data set.
        pairs: a text and its label.

    Raises:
        ValueError: there is no text, a label is missing, or all labels are equal.
    """
    texts, labels = [], []
    for text, label in pairs:
        if not text.strip():
            continue
        if label is None:
            raise ValueError(f"data set {name}: the text {text[:40]!r} has no label; give it one, or leave it out")
        texts.append(text)
        labels.append(label)
    if not texts:
        raise ValueError(f"data set {name} has no text; name another one")
    try:
        classes = sorted(set(labels))
    except TypeError as error:
        raise ValueError(f"data set {name} has labels of different types; make them all numbers or all text") from error
    if len(classes) < 2:
        raise ValueError(
            f"data set {name}: all {len(texts)} labels are {classes[0]!r}, and a probe needs two classes; "
            "name another data set or label column"
        )
    number = {each: place for place, each in enumerate(classes)}
    return LabelledTexts(name, texts, np.array([number[each] for each in labels]), [str(each) for each in classes])


def read_labelled(
    settings: DatasetSettings, key: str, classes: Sequence[Any] | None = None, per_class: int | None = None
) -> LabelledTexts:
    """Return the labelled texts of a data set of files or of the hub, of both its parts.

    Args:
        settings: the data set; `text_column` and `label_column` name its columns.
        key: the group of settings that messages name, such as "eval.probing".
        classes: the labels that are kept; None for all.
        per_class: texts of each label that are kept, the first ones; None for all. If `classes` are given, nothing
            more is read as soon as each has so many.

    Raises:
        ValueError: the data set cannot be read or has no such columns; there is no text, or all labels are equal.
    """
    assert settings.label_column is not None
    # A run's data set is split, and an evaluation's own one is not. Hardly any document is in so small a part.
    whole = replace(settings, held_out=1e-15)
    try:
        kept = list(_kept(open_documents(whole, Part.train), classes, per_class))
    except ValueError as error:
        # The data set is the evaluation's own; it is not the one that `dataset` names.
        raise ValueError(str(error).replace("dataset.", f"{key}.")) from error
    return labelled(settings.name, kept)


def _kept(
    documents: Iterable[Document], classes: Sequence[Any] | None, per_class: int | None
) -> Iterator[tuple[str, Any]]:
    counts: Counter[Any] = Counter()
    for each in documents:
        if classes is not None and each.label not in classes:
            continue
        counts[each.label] += 1
        if per_class is None or counts[each.label] <= per_class:
            yield str(each.content), each.label
        if classes is not None and per_class is not None and all(counts[label] >= per_class for label in classes):
            return

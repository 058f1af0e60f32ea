"""The identity of a run's data: the weights and files behind the settings that name them."""

import json

from fsae.language_models.identity import model_identity
from fsae.language_models.settings import ModelSettings, OtherModelSettings
from fsae.sources.documents import DatasetSettings, dataset_identity
from fsae.sources.source import SourceSettings


def data_identity(
    model: ModelSettings | None,
    dataset: DatasetSettings | None,
    source: SourceSettings,
) -> dict[str, str]:
    """Return what distinguishes a run's data from other data that the same settings may name on another day.

    The key of an activation store has the same information, in addition to the settings themselves.

    Returns:
        Text, by a name for messages of the thing that it identifies.

    Raises:
        ValueError: a model or a data set does not exist.
    """
    identities: dict[str, dict[str, str]] = {}
    if model is not None:
        identities["the weights of model"] = model_identity(model)
    if dataset is not None:
        identities["the text of dataset"] = dataset_identity(dataset)
    identities["the files of source"] = source.identity()
    return {what: json.dumps(each, sort_keys=True) for what, each in identities.items() if each}


def other_model_identity(model: ModelSettings | None) -> dict[str, str]:
    """Return what distinguishes the second model of a crosscoder, by a name for messages; nothing without one.

    Raises:
        ValueError: it does not exist.
    """
    if model is None:
        return {}
    identity = model_identity(OtherModelSettings.of(model))
    return {"the weights of layout.model": json.dumps(identity, sort_keys=True)}

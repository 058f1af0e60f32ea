"""Neuronpedia's bulk folder: what its importer reads, as SAEDashboard and Neuronpedia's own converter write it.

{model}/{source}/
    release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl   one line each
    features/batch-{i}.jsonl.gz                                 a line per latent
    activations/batch-{i}.jsonl.gz                              a line per example
    explanations/batch-{i}.jsonl.gz                             a line per label, if wanted

The importer takes the columns from the first line of a file, so all lines of a file have equal keys.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fsae.outputs.latent_store import LatentStore
from fsae.publishing.latent_facts import Example, LatentFacts, batches_of_facts
from fsae.publishing.new_folder import new_folder
from fsae.publishing.source_set import SourceSet

Row = dict[str, Any]
_GZIP_LEVEL = 5
# The length of the ids in Neuronpedia's database.
_ID_LENGTH = 25


def write_neuronpedia(
    store: LatentStore,
    W_dec: Float[np.ndarray, "d_sae d_in"],
    source: SourceSet,
    folder: Path,
    created: datetime,
    labels: bool = False,
) -> Path:
    """Write Neuronpedia's bulk folder of a dictionary.

    Args:
        store: of text.
        W_dec: the decoder's rows.
        source: the names.
        folder: above the models' folders.
        created: the time of creation that the rows have.
        labels: whether the labels are written as explanations.

    Returns:
        The new folder, `folder/{model}/{source}`; an earlier export there is replaced.

    Raises:
        ValueError: the store cannot be shown (see `batches_of_facts`), or something else is there.
        OSError: no space is left; an earlier export is untouched.
    """
    rows = _Rows(source, store, created)
    final = folder / source.model / source.source
    with new_folder(final, "source.jsonl") as unfinished:
        for name, row in (
            ("release", rows.release()),
            ("model", rows.model(W_dec.shape[1])),
            ("sourceset", rows.source_set()),
            ("source", rows.source()),
        ):
            (unfinished / f"{name}.jsonl").write_bytes(_lines([row]))
        for number, facts in enumerate(batches_of_facts(store, W_dec)):
            tables = {
                "features": [rows.feature(each) for each in facts],
                "activations": [
                    rows.activation(each, place, example)
                    for each in facts
                    for place, example in enumerate(each.examples)
                ],
            }
            if labels:
                tables["explanations"] = [rows.explanation(each, each.label) for each in facts if each.label]
            for name, table in tables.items():
                path = unfinished / name / f"batch-{number}.jsonl.gz"
                path.parent.mkdir(exist_ok=True)
                # Without a time in it, the same content has the same bytes.
                path.write_bytes(gzip.compress(_lines(table), _GZIP_LEVEL, mtime=0))
    return final


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    assert all(list(row) == list(rows[0]) for row in rows), "the importer reads the columns from the first line"
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n" for row in rows)
    return text.encode()


class _Rows:
    """The rows of one dictionary; each method's keys are the columns of a table."""

    def __init__(self, source: SourceSet, store: LatentStore, created: datetime):
        self._source, self._meta = source, store.meta
        self._created = created.isoformat()

    def _id(self, *parts: object) -> str:
        """Return an id of the database's form: the same for the same row of the same export, and unique."""
        content = [self._source.model, self._source.source, self._meta.weights, self._created, *parts]
        return "c" + blake2b(repr(content).encode(), digest_size=16).hexdigest()[: _ID_LENGTH - 1]

    def release(self) -> Row:
        source = self._source
        return {
            "name": source.name,
            "description": source.description or source.name,
            "creatorName": source.creator,
            "creatorId": source.creator_id,
            "visibility": "PUBLIC",
            "isNewUi": False,
            "featured": False,
            "descriptionShort": source.description or source.name,
            "urls": [source.url] if source.url else [],
            "creatorEmail": None,
            "creatorNameShort": source.creator,
            "defaultSourceSetName": None,
            "defaultSourceId": None,
            "defaultUmapSourceIds": [],
            "createdAt": self._created,
        }

    def model(self, dimension: int) -> Row:
        model = self._source.model
        at_residual_stream = self._source.site.name.value.startswith("resid")
        return {
            "id": model,
            "instruct": model.endswith(("-it", "-instruct")),
            "creatorId": self._source.creator_id,
            "displayNameShort": model,
            "displayName": model,
            "tlensId": None,
            "dimension": dimension if at_residual_stream else None,
            "visibility": "PUBLIC",
            "defaultSourceSetName": None,
            "defaultSourceId": None,
            "inferenceEnabled": False,
            # The importers leave a model alone that Neuronpedia knows.
            "layers": 0,
            "neuronsPerLayer": 0,
            "createdAt": self._created,
            "owner": "",
            "updatedAt": self._created,
            "website": None,
        }

    def source_set(self) -> Row:
        source = self._source
        return {
            "modelId": source.model,
            "name": source.name,
            "creatorId": source.creator_id,
            "hasDashboards": True,
            "visibility": "PUBLIC",
            "description": source.description or source.name,
            "type": "",
            "creatorName": source.creator,
            "urls": [source.url] if source.url else [],
            "creatorEmail": None,
            "releaseName": source.name,
            "defaultOfModelId": None,
            "defaultRange": 1,
            "defaultShowBreaks": True,
            "showDfa": False,
            "showCorrelated": True,
            "showHeadAttribution": False,
            "showUmap": False,
            "createdAt": self._created,
        }

    def source(self) -> Row:
        source = self._source
        return {
            "id": source.source,
            "modelId": source.model,
            "setName": source.name,
            "creatorId": source.creator_id,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "inferenceHosts": [],
            "saelensConfig": None,
            "saelensRelease": None,
            "saelensSaeId": None,
            "hfRepoId": source.hub_repo,
            "hfFolderId": source.hub_folder,
            "visibility": "PUBLIC",
            "defaultOfModelId": None,
            "hasUmap": False,
            "hasUmapLogSparsity": False,
            "hasUmapClusters": False,
            "num_prompts": self._meta.contexts,
            "num_tokens_in_prompt": self._meta.context,
            "dataset": source.dataset,
            "notes": None,
            "createdAt": self._created,
        }

    def feature(self, facts: LatentFacts) -> Row:
        source = self._source
        return {
            "modelId": source.model,
            "layer": source.source,
            "index": facts.latent,
            "creatorId": source.creator_id,
            "createdAt": self._created,
            "maxActApprox": facts.largest,
            "hasVector": True,
            "vector": facts.direction,
            "vectorLabel": None,
            "vectorDefaultSteerStrength": facts.largest,
            "hookName": (source.written or source.site).hook_name,
            "topkCosSimIndices": facts.neighbours,
            "topkCosSimValues": facts.neighbour_cosines,
            "neuron_alignment_indices": facts.neurons,
            "neuron_alignment_values": facts.neuron_values,
            "neuron_alignment_l1": facts.neuron_shares,
            "correlated_neurons_indices": [],
            "correlated_neurons_pearson": [],
            "correlated_neurons_l1": [],
            "correlated_features_indices": facts.correlated,
            "correlated_features_pearson": facts.correlated_pearson,
            "correlated_features_l1": facts.correlated_cosine,
            "neg_str": facts.lowered_tokens,
            "neg_values": facts.lowered_values,
            "pos_str": facts.raised_tokens,
            "pos_values": facts.raised_values,
            "frac_nonzero": facts.density,
            "freq_hist_data_bar_heights": facts.histogram_heights,
            "freq_hist_data_bar_values": facts.histogram_values,
            # The latent store has moments of the logit effects, and no histogram.
            "logits_hist_data_bar_heights": [],
            "logits_hist_data_bar_values": [],
            "decoder_weights_dist": [],
            "sourceSetName": source.name,
        }

    def activation(self, facts: LatentFacts, place: int, example: Example) -> Row:
        largest = max(example.values)
        return {
            "id": self._id("activation", facts.latent, place),
            "tokens": example.tokens,
            "index": facts.latent,
            "layer": self._source.source,
            "modelId": self._source.model,
            "maxValue": largest,
            "maxValueTokenIndex": example.values.index(largest),
            "minValue": min(example.values),
            "values": example.values,
            "creatorId": self._source.creator_id,
            "dataSource": None,
            "dataIndex": None,
            "dfaValues": [],
            "dfaTargetIndex": None,
            "dfaMaxValue": None,
            "createdAt": self._created,
            "lossValues": [],
            "logitContributions": None,
            "binMin": example.group.least,
            "binMax": example.group.most,
            "binContains": example.group.share,
            "qualifyingTokenIndex": example.peak,
            "zIndices": None,
            "zValues": None,
        }

    def explanation(self, facts: LatentFacts, label: str) -> Row:
        return {
            "id": self._id("explanation", facts.latent),
            "modelId": self._source.model,
            "layer": self._source.source,
            "index": facts.latent,
            "description": label,
            "authorId": self._source.creator_id,
            # Neuronpedia makes the embeddings, and has no name for the method.
            "embedding": None,
            "triggeredById": None,
            "typeName": None,
            "explanationModelName": None,
            "notes": None,
            "createdAt": self._created,
        }

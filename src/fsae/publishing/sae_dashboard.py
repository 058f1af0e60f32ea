"""SAEDashboard's batch files for Neuronpedia: the folder that its `NeuronpediaRunner` writes.

run_settings.json     the runner's settings, those that apply
skipped_indexes.json  latents that no batch has, because they are never on
tokens_{N}.pt         (N, context) token ids of the text
batch-{i}.json        the facts about 128 latents
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from fsae.outputs.latent_store import LatentStore
from fsae.publishing.latent_facts import BATCH, Example, LatentFacts, batches_of_facts
from fsae.publishing.new_folder import new_folder
from fsae.publishing.source_set import SourceSet


def write_sae_dashboard(
    store: LatentStore, W_dec: Float[np.ndarray, "d_sae d_in"], source: SourceSet, folder: Path
) -> Path:
    """Write SAEDashboard's folder of a dictionary.

    Args:
        store: of text.
        W_dec: the decoder's rows.
        source: the names.
        folder: above the folder that is written.

    Returns:
        The new folder, `{model}_{set}_{hook}_{d_sae}`; an earlier export there is replaced.

    Raises:
        ValueError: the store cannot be shown (see `batches_of_facts`), or something else is there.
        OSError: no space is left; an earlier export is untouched.
    """
    meta = store.meta
    final = folder / f"{source.model}_{source.name}_{source.site.hook_name}_{meta.d_sae}"
    skipped: list[int] = []
    with new_folder(final, "run_settings.json") as unfinished:
        for number, facts in enumerate(batches_of_facts(store, W_dec)):
            shown = [each for each in facts if each.examples]
            skipped += [each.latent for each in facts if not each.examples]
            batch = {
                "model_id": source.model,
                "layer": source.layer,
                "sae_set": source.name,
                "sae_id_suffix": None,
                "features": [_feature(each, store, source) for each in shown],
            }
            if shown:
                _write(unfinished / f"batch-{number}.json", batch)
        _write(
            unfinished / "skipped_indexes.json",
            {
                "model_id": source.model,
                "layer": str(source.layer),
                "sae_set": source.name,
                "log_sparsity": None,
                "skipped_indexes": skipped,
            },
        )
        torch.save(torch.from_numpy(np.array(store.tokens)).long(), unfinished / f"tokens_{meta.contexts}.pt")
        _write(unfinished / "run_settings.json", _run_settings(store, source))
    return final


def _run_settings(store: LatentStore, source: SourceSet) -> dict[str, Any]:
    return {
        "sae_set": source.name,
        "np_sae_id_suffix": None,
        "np_set_name": source.name,
        "huggingface_dataset_path": source.dataset,
        "n_prompts_total": store.meta.contexts,
        "n_tokens_in_prompt": store.meta.context,
        "n_features_at_a_time": BATCH,
        "top_acts_group_size": store.meta.top,
        "quantile_group_size": store.meta.per_bin,
        "model_dtype": store.meta.dtype,
        "sae_dtype": "float32",
        "model_id": source.model,
        "layer": source.layer,
    }


def _feature(facts: LatentFacts, store: LatentStore, source: SourceSet) -> dict[str, Any]:
    return {
        "feature_index": facts.latent,
        "neuron_alignment_indices": facts.neurons,
        "neuron_alignment_values": facts.neuron_values,
        "neuron_alignment_l1": facts.neuron_shares,
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": facts.correlated,
        "correlated_features_l1": facts.correlated_cosine,
        "correlated_features_pearson": facts.correlated_pearson,
        "neg_str": facts.lowered_tokens,
        "neg_values": facts.lowered_values,
        "pos_str": facts.raised_tokens,
        "pos_values": facts.raised_values,
        "frac_nonzero": facts.density,
        "freq_hist_data_bar_values": facts.histogram_values,
        "freq_hist_data_bar_heights": facts.histogram_heights,
        # The latent store has moments of the logit effects, and no histogram.
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "n_prompts_total": store.meta.contexts,
        "n_tokens_in_prompt": store.meta.context,
        "dataset": source.dataset,
        "decoder_weights_dist": [],
        "vector": facts.direction,
        "activations": [_activation(example) for example in facts.examples],
    }


def _activation(example: Example) -> dict[str, Any]:
    return {
        "bin_min": example.group.least,
        "bin_max": example.group.most,
        "bin_contains": example.group.share,
        "tokens": example.tokens,
        "values": example.values,
        "qualifying_token_index": example.peak,
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")

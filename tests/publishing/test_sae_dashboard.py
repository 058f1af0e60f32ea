"""SAEDashboard's files, by the names that its runner writes and that its converter for Neuronpedia reads."""

import json
from pathlib import Path

import pytest
import torch

from fsae.outputs.latent_store import LatentStore
from fsae.publishing.sae_dashboard import write_sae_dashboard
from fsae.publishing.source_set import SourceSet
from tests.publishing.small_store import TOKENS, W_DEC

FEATURE = [
    "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson",
    "correlated_features_indices", "correlated_features_l1", "correlated_features_pearson", "neg_str", "neg_values",
    "pos_str", "pos_values", "frac_nonzero", "freq_hist_data_bar_values", "freq_hist_data_bar_heights",
    "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "n_prompts_total", "n_tokens_in_prompt",
    "dataset", "decoder_weights_dist", "vector", "activations",
]  # fmt: skip
ACTIVATION = ["bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"]


@pytest.fixture
def folder(store: LatentStore, source: SourceSet, tmp_path: Path) -> Path:
    return write_sae_dashboard(store, W_DEC, source, tmp_path / "dashboards")


def test_the_folder_has_the_runners_name_and_files(folder: Path):
    assert folder.name == "Tiny_small-set_blocks.1.hook_resid_mid_3"
    assert {path.name for path in folder.iterdir()} == {
        "run_settings.json", "skipped_indexes.json", "tokens_2.pt", "batch-0.json",
    }  # fmt: skip
    assert torch.load(folder / "tokens_2.pt", weights_only=True).tolist() == TOKENS.tolist()
    settings = json.loads((folder / "run_settings.json").read_text())
    assert (settings["n_prompts_total"], settings["n_tokens_in_prompt"], settings["layer"]) == (2, 6, 1)


def test_a_batch_has_the_latents_that_are_on(folder: Path):
    batch = json.loads((folder / "batch-0.json").read_text())
    features = batch.pop("features")
    assert batch == {"model_id": "Tiny", "layer": 1, "sae_set": "small-set", "sae_id_suffix": None}
    assert [feature["feature_index"] for feature in features] == [0, 2]
    assert json.loads((folder / "skipped_indexes.json").read_text())["skipped_indexes"] == [1]
    for feature in features:
        assert list(feature) == FEATURE
        assert all(list(activation) == ACTIVATION for activation in feature["activations"])


def test_the_top_group_is_marked_as_the_converter_expects_it(folder: Path):
    first = json.loads((folder / "batch-0.json").read_text())["features"][0]
    top, _, sampled = first["activations"]
    assert (top["bin_min"], top["bin_max"], top["bin_contains"]) == (-1, 3.0, -1)
    assert 0 <= sampled["bin_min"] < sampled["bin_max"] <= 3.0
    assert 0 < sampled["bin_contains"] <= 1
    assert top["values"][top["qualifying_token_index"]] == max(top["values"])
    assert (first["frac_nonzero"], first["dataset"], first["vector"]) == (0.3, "owner/text", [0, -1, 0, 0])

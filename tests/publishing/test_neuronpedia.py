"""Neuronpedia's bulk folder: the columns of its tables, and the same content as SAEDashboard's files."""

import gzip
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fsae.language_models.sites import Site
from fsae.outputs.latent_store import LatentStore
from fsae.publishing.neuronpedia import write_neuronpedia
from fsae.publishing.sae_dashboard import write_sae_dashboard
from fsae.publishing.source_set import SourceSet
from tests.publishing.small_store import W_DEC

CREATED = datetime(2026, 11, 28, 12, tzinfo=UTC)
# In the order of the classes in Neuronpedia's db_models.
COLUMNS = {
    "features": "modelId layer index creatorId createdAt maxActApprox hasVector vector vectorLabel "
    "vectorDefaultSteerStrength hookName topkCosSimIndices topkCosSimValues neuron_alignment_indices "
    "neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices correlated_neurons_pearson "
    "correlated_neurons_l1 correlated_features_indices correlated_features_pearson correlated_features_l1 neg_str "
    "neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights freq_hist_data_bar_values "
    "logits_hist_data_bar_heights logits_hist_data_bar_values decoder_weights_dist sourceSetName",
    "activations": "id tokens index layer modelId maxValue maxValueTokenIndex minValue values creatorId dataSource "
    "dataIndex dfaValues dfaTargetIndex dfaMaxValue createdAt lossValues logitContributions binMin binMax binContains "
    "qualifyingTokenIndex zIndices zValues",
    "explanations": "id modelId layer index description authorId embedding triggeredById typeName "
    "explanationModelName notes createdAt",
    "release": "name description creatorName creatorId visibility isNewUi featured descriptionShort urls creatorEmail "
    "creatorNameShort defaultSourceSetName defaultSourceId defaultUmapSourceIds createdAt",
    "model": "id instruct creatorId displayNameShort displayName tlensId dimension visibility defaultSourceSetName "
    "defaultSourceId inferenceEnabled layers neuronsPerLayer createdAt owner updatedAt website",
    "sourceset": "modelId name creatorId hasDashboards visibility description type creatorName urls creatorEmail "
    "releaseName defaultOfModelId defaultRange defaultShowBreaks showDfa showCorrelated showHeadAttribution showUmap "
    "createdAt",
    "source": "id modelId setName creatorId hasDashboards inferenceEnabled inferenceHosts saelensConfig saelensRelease "
    "saelensSaeId hfRepoId hfFolderId visibility defaultOfModelId hasUmap hasUmapLogSparsity hasUmapClusters "
    "num_prompts num_tokens_in_prompt dataset notes createdAt",
}


@pytest.fixture
def folder(store: LatentStore, source: SourceSet, tmp_path: Path) -> Path:
    return write_neuronpedia(store, W_DEC, source, tmp_path / "exports", CREATED, labels=True)


def lines(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def test_every_line_of_a_file_has_the_tables_columns(folder: Path):
    assert folder.parts[-2:] == ("Tiny", "1-small-set")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    batched = {f"{name}/batch-0.jsonl.gz" for name in ("features", "activations", "explanations")}
    assert files == batched | {f"{name}.jsonl" for name in ("release", "model", "sourceset", "source")}
    for file in files:
        rows = lines(folder / file)
        assert rows
        columns = COLUMNS[file.partition("/")[0].removesuffix(".jsonl")].split()
        assert [list(row) for row in rows] == [columns] * len(rows)


def test_the_rows_agree_with_saedashboards_files(folder: Path, store: LatentStore, source: SourceSet, tmp_path: Path):
    """Its converter takes these columns over under the same names."""
    dashboards = write_sae_dashboard(store, W_DEC, source, tmp_path / "dashboards")
    features = json.loads((dashboards / "batch-0.json").read_text())["features"]
    rows = {row["index"]: row for row in lines(folder / "features" / "batch-0.jsonl.gz")}
    activations = lines(folder / "activations" / "batch-0.jsonl.gz")
    for feature in features:
        row = rows[feature["feature_index"]]
        same = row.keys() & feature.keys()
        assert len(same) == 20
        assert {name: row[name] for name in same} == {name: feature[name] for name in same}
        own = [each for each in activations if each["index"] == row["index"]]
        renamed = {"binMin": "bin_min", "binMax": "bin_max", "binContains": "bin_contains", "tokens": "tokens"}
        renamed |= {"values": "values", "qualifyingTokenIndex": "qualifying_token_index"}
        assert [{name: each[name] for name in renamed} for each in own] == [
            {name: each[theirs] for name, theirs in renamed.items()} for each in feature["activations"]
        ]
        # As the converter computes them.
        largest = max(max(each["values"]) for each in feature["activations"])
        assert row["maxActApprox"] == row["vectorDefaultSteerStrength"] == largest


def test_a_feature_has_its_vector_and_neighbours(folder: Path):
    first, dead, _ = lines(folder / "features" / "batch-0.jsonl.gz")
    assert (first["layer"], first["hookName"], first["sourceSetName"]) == (
        "1-small-set", "blocks.1.hook_resid_mid", "small-set",
    )  # fmt: skip
    assert (first["topkCosSimIndices"], first["vector"], first["hasVector"]) == ([2], [0, -1, 0, 0], True)
    assert (dead["maxActApprox"], dead["frac_nonzero"], dead["pos_str"]) == (0, 0, [])


def test_the_vectors_of_a_transcoder_are_of_the_site_that_it_writes(
    store: LatentStore, source: SourceSet, tmp_path: Path
):
    between = replace(source, written=Site.parse("mlp_out.1"))
    folder = write_neuronpedia(store, W_DEC, between, tmp_path, CREATED, labels=False)
    assert lines(folder / "features" / "batch-0.jsonl.gz")[0]["hookName"] == "blocks.1.hook_mlp_out"


def test_ids_have_the_databases_length_and_belong_to_one_row(folder: Path):
    rows = lines(folder / "activations" / "batch-0.jsonl.gz") + lines(folder / "explanations" / "batch-0.jsonl.gz")
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == len(ids) == 6
    assert all(len(each) == 25 and each.startswith("c") for each in ids)


def test_an_example_has_its_extremes(folder: Path):
    first = lines(folder / "activations" / "batch-0.jsonl.gz")[0]
    assert (first["values"], first["maxValue"], first["maxValueTokenIndex"], first["minValue"]) == (
        [0, 2.4, 3, 0], 3, 2, 0,
    )  # fmt: skip
    assert first["createdAt"] == "2026-11-28T12:00:00+00:00"


def test_the_source_names_the_published_weights(folder: Path):
    (source,) = lines(folder / "source.jsonl")
    assert (source["hfRepoId"], source["hfFolderId"], source["dataset"], source["num_prompts"]) == (
        "me/sae", "blocks.1.hook_resid_mid", "owner/text", 2,
    )  # fmt: skip
    (release,), (sources,) = lines(folder / "release.jsonl"), lines(folder / "sourceset.jsonl")
    assert release["name"] == sources["releaseName"] == "small-set"
    assert release["creatorName"] == "Someone"
    assert {sources["visibility"], release["visibility"]} == {"PUBLIC"}


def test_the_same_export_has_the_same_bytes(folder: Path, store: LatentStore, source: SourceSet, tmp_path: Path):
    again = write_neuronpedia(store, W_DEC, source, tmp_path / "again", CREATED)
    # Labels are written only if they are wanted.
    assert not (again / "explanations").exists()
    for path in again.rglob("*.*"):
        assert path.read_bytes() == (folder / path.relative_to(again)).read_bytes()

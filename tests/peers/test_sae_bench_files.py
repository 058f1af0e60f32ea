"""SAEBench's own classes accept fsae's files of its layout, and its plots read them."""

import json
from pathlib import Path
from typing import Any

import pytest

from fsae.evaluation.downstream.k_sparse import Protocol
from fsae.publishing.sae_bench import write_sae_bench
from tests.publishing.evaluated_run import SAE, SPLICE, VECTORS, write_run

pytestmark = pytest.mark.peers

KINDS = (
    "core", "sparse_probing", "sparse_probing_sae_probes", "absorption_first_letter", "ravel", "autointerp",
    "scr", "tpp",
)  # fmt: skip


@pytest.fixture(scope="module")
def read(sae_bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the content of the files of two runs as SAEBench reads them."""
    folder: Path = tmp_path_factory.mktemp("files")
    for protocol in Protocol:
        # In both runs all other evaluations are the same.
        run = write_run(folder / "runs" / f"run-{protocol.value}", protocol)
        write_sae_bench(run, SAE, folder / "bench")
    sae_bench("files", folder / "bench", folder / "out.json")
    return json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_saebench_s_own_class_accepts_a_file(read, kind: str):
    assert read["accepted"][kind] >= 1


def test_no_metric_or_setting_is_unknown_to_saebench(read):
    assert read["unknown"] == {}


def test_its_plots_read_the_numbers(read):
    core = read["core"]["run-saebench_custom_sae"]
    assert core == {"l0": VECTORS["l0"], "ce_loss_score": SPLICE["ce_recovered_zero"]}
    results = read["results"]
    assert results["absorption_first_letter"]["mean_absorption_fraction_score"] == 0.3
    assert results["sparse_probing"]["sae_top_1_test_accuracy"] == 0.7
    assert results["tpp"]["tpp_threshold_20_total_metric"] == 0.2
    assert results["scr"]["scr_metric_threshold_20"] == 0.2
    for each in results.values():
        assert (each["sae_class"], each["d_sae"], each["train_tokens"]) == ("batch_topk", "5k", SAE["training_tokens"])


def test_its_plots_are_drawn(read):
    assert read["drawn"] == ["absorption_first_letter", "autointerp", "scr", "sparse_probing", "tpp"]

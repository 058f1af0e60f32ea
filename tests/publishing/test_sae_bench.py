"""SAEBench's files; `tests/peers/test_sae_bench_files.py` reads them with SAEBench's own classes and plots."""

import json
from pathlib import Path

import pytest

from fsae.evaluation.downstream.k_sparse import Protocol
from fsae.publishing.sae_bench import misread, write_sae_bench
from tests.publishing.evaluated_run import SAE, SPLICE, VECTORS, write_run

KINDS = ("core", "sparse_probing", "absorption_first_letter", "ravel", "autointerp", "scr", "tpp")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The files by their kind."""
    folder = tmp_path_factory.mktemp("bench")
    paths = write_sae_bench(write_run(folder / "runs" / "smol-1"), SAE, folder / "out")
    assert {path.name for path in paths} == {"smol-1_custom_sae_eval_results.json"}
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def test_each_evaluation_has_a_file_of_its_kind(files):
    assert set(files) == set(KINDS)
    assert {kind: file["eval_type_id"] for kind, file in files.items()} == {kind: kind for kind in KINDS}
    for file in files.values():
        assert (file["sae_lens_release_id"], file["sae_lens_id"]) == ("smol-1", "custom_sae")
        assert file["sae_cfg_dict"] == SAE
        assert file["datetime_epoch_millis"] > 1.7e12
        assert "not by SAEBench" in file["sae_bench_commit_hash"]
        assert file["eval_config"]["fsae"]["differences"]


def test_core_has_the_numbers_of_equal_definition_and_no_others(files):
    metrics = files["core"]["eval_result_metrics"]
    flat = {name: value for category in metrics.values() for name, value in category.items()}
    assert {name: value for name, value in flat.items() if value != -1} == {
        "kl_div_with_sae": SPLICE["kl"],
        "ce_loss_score": SPLICE["ce_recovered_zero"],
        "ce_loss_with_ablation": SPLICE["ce_zero"],
        "ce_loss_with_sae": SPLICE["ce_spliced"],
        "ce_loss_without_sae": SPLICE["ce_base"],
        "cossim": VECTORS["cosine"],
        "l2_ratio": VECTORS["l2_ratio"],
        "l0": VECTORS["l0"],
        "total_tokens_eval_reconstruction": 2048,
        "total_tokens_eval_sparsity_variance": 4096,
        "frac_alive": 0.75,
    }
    # SAEBench's explained variance and mse are other numbers.
    assert {"explained_variance", "mse", "l1"} < set(files["core"]["eval_config"]["fsae"]["not_measured"])


def test_probing_has_the_values_of_k_that_saebench_has(files):
    file = files["sparse_probing"]
    assert file["eval_result_metrics"] == {
        "llm": {"llm_test_accuracy": -1, "llm_top_1_test_accuracy": 0.5},
        "sae": {"sae_top_1_test_accuracy": 0.7},
    }
    ag_news, spam = file["eval_result_details"]
    assert ag_news["dataset_name"] == "ag_news"
    # The mean over its classes.
    assert ag_news["sae_top_1_test_accuracy"] == pytest.approx(0.7)
    assert ag_news["llm_top_1_test_accuracy"] == pytest.approx(0.5)
    assert spam["sae_top_1_test_accuracy"] == 0.75
    assert file["eval_config"]["dataset_names"] == ["ag_news", "spam"]


def test_probing_of_sae_probes_is_a_kind_of_its_own(tmp_path):
    paths = write_sae_bench(write_run(tmp_path / "run", Protocol.sae_probes), SAE, tmp_path / "out")
    (path,) = (path for path in paths if "probing" in path.parent.name)
    assert path.parent.name == "sparse_probing_sae_probes"
    file = json.loads(path.read_text())
    assert file["eval_result_metrics"] == {"llm": {}, "sae": {"sae_top_1_test_auc": 0.7}}
    assert file["eval_result_details"][1] == {"dataset_name": "spam", "sae_top_1_test_auc": 0.75}


def test_scr_and_tpp_have_both_parts_per_data_set_and_their_means(files):
    assert files["scr"]["eval_result_metrics"]["scr_metrics"] == {
        "scr_metric_threshold_2": 0.02,
        "scr_dir1_threshold_2": 1.02,
        "scr_dir2_threshold_2": 2.02,
        "scr_metric_threshold_20": 0.2,
        "scr_dir1_threshold_20": 1.2,
        "scr_dir2_threshold_20": 2.2,
    }
    assert files["tpp"]["eval_result_metrics"]["tpp_metrics"]["tpp_threshold_20_total_metric"] == 0.2
    assert [row["dataset_name"] for row in files["tpp"]["eval_result_details"]] == ["news_results", "disease_results"]
    assert any("2605.18229" in each for each in files["scr"]["eval_config"]["fsae"]["differences"])


def test_absorption_ravel_and_autointerp_have_their_means(files):
    mean = files["absorption_first_letter"]["eval_result_metrics"]["mean"]
    assert mean["mean_absorption_fraction_score"] == 0.3
    # SAEBench's deviation is over letters, and fsae's noise is over splits.
    assert mean["std_dev_absorption_fraction_score"] == -1
    assert files["ravel"]["eval_result_metrics"]["ravel"] == {
        "disentanglement_score": 0.5,
        "cause_score": 0.6,
        "isolation_score": 0.4,
    }
    assert files["autointerp"]["eval_result_metrics"]["autointerp"]["autointerp_score"] == 0.8


def test_equal_numbers_give_the_same_file(tmp_path):
    run = write_run(tmp_path / "run")
    first, second = (
        [path.read_bytes() for path in write_sae_bench(run, SAE, tmp_path / name)] for name in ("one", "two")
    )
    assert first == second


def test_a_run_without_such_an_evaluation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no evaluation that SAEBench has, too; measure some first"):
        write_sae_bench(tmp_path, SAE, tmp_path / "out")


@pytest.mark.parametrize(
    ("folder", "part"), [("/scratch/me", "scr"), ("/data/http_proxy", None), ("/data/tpp2", "tpp")]
)
def test_paths_that_saebench_reads_as_another_kind_are_found(folder: str, part: str | None):
    assert misread(Path(folder)) == part

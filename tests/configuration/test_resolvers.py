import json
from pathlib import Path

import pytest

from fsae.configuration.resolvers import deciding_settings, flat_settings
from tests.composition import composed, run_folder


@pytest.fixture(autouse=True)
def _outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FSAE_OUTPUTS", str(tmp_path / "outputs"))


def test_settings_are_flattened_to_text():
    flat = flat_settings(composed("name=mine", "trainer.lr=1e-3", "site.layer=2", "loss.penalty.form=pre"))
    assert flat["task"] == "train"
    assert flat["name"] == "mine"
    assert flat["trainer.lr"] == "0.001"
    assert flat["site.name"] == "resid_mid"
    assert flat["site.layer"] == "2"
    assert flat["loss.penalty.form"] == "pre"
    assert flat["model.path"] == "null"
    assert flat["trainer.activation_scale"] == "sqrt_d"
    assert flat["paths.runs"].endswith("/outputs/runs")
    assert not any(key.startswith("hydra") for key in flat)


def test_flat_settings_list_the_choice_under_its_own_key():
    assert flat_settings(composed("arch=abs_topk"))["arch"] == "abs_topk"
    assert flat_settings(composed("trainer=pam"))["trainer"] == "pam"
    # These have the same keys but are different terms.
    step, tanh = (flat_settings(composed("arch=jumprelu", f"loss={loss}")) for loss in ("jumprelu", "jumprelu_tanh"))
    assert (step["loss.sparsity"], tanh["loss.sparsity"]) == ("step_l0", "tanh_l0")
    assert step["loss.penalty"] == "fisher"


def test_deciding_settings_omit_bookkeeping():
    flat, deciding = flat_settings(composed()), deciding_settings(composed())
    # The stream is the same with a store and without, and does not depend on how often states are saved.
    kept = {"source.cache", "source.cache_gb", "source.also", "trainer.checkpoint_seconds"}
    assert {key for key in flat if key not in deciding} == {
        key for key in flat if key.startswith(("paths.", "tracking.", "search.", "suite.")) or key in kept
    }


def test_relative_paths_refer_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSAE_OUTPUTS", "here")
    assert composed().paths.runs == str(tmp_path / "here" / "runs")
    monkeypatch.setenv("FSAE_OUTPUTS", "~/home")
    assert composed().paths.outputs == str(Path.home() / "home")
    monkeypatch.delenv("FSAE_OUTPUTS")
    assert composed().paths.outputs == str(tmp_path / "outputs")


def test_the_same_settings_have_the_same_folder_in_any_notation():
    folder = run_folder("model=tiny", "site.layer=1", "trainer.lr=1e-3")
    assert folder.name.startswith("tiny-resid_mid.1-gated-")
    assert folder == run_folder("trainer.lr=0.001", "site.layer=1", "model=tiny", "seed=0", "arch=gated")


def test_tracking_and_paths_do_not_change_the_folders_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    name = run_folder("model=tiny").name
    assert run_folder("model=tiny", "tracking=none", "tracking.experiment=other").name == name
    monkeypatch.setenv("FSAE_OUTPUTS", str(tmp_path / "elsewhere"))
    elsewhere = run_folder("model=tiny")
    assert elsewhere.name == name
    assert elsewhere.parent == tmp_path / "elsewhere" / "runs"


@pytest.mark.parametrize(
    "override",
    ["seed=1", "trainer.lr=1e-5", "arch=topk", "loss.penalty.weight=0.123", "dataset.context=64", "site.layer=1"],
)
def test_other_settings_change_the_folders_name(override: str):
    assert run_folder("model=tiny").name != run_folder("model=tiny", override).name


def test_a_given_name_replaces_the_default():
    assert run_folder("name=mine").name.startswith("mine-")
    assert run_folder("name=mine").name != run_folder("name=mine", "seed=1").name


def test_a_control_is_in_the_folders_name():
    assert run_folder("model=tiny", "trainer.frozen=decoder").name.startswith(
        "tiny-resid_mid.3-gated-fisher-frozen_decoder-"
    )
    assert run_folder("model=tiny", "model.weights=random").name.startswith("tiny-random_weights-resid_mid.3-gated-")


def test_names_of_models_and_data_sets_follow_from_their_settings(tmp_path: Path):
    mine = ["model=custom", f"model.path={tmp_path}/it", "dataset=text_files", f"dataset.path={tmp_path}/texts"]
    flat = flat_settings(composed(*mine))
    assert (flat["model.name"], flat["dataset.name"]) == ("it", "texts")
    assert run_folder(*mine).name.startswith("it-resid_mid.3-gated-")
    assert flat_settings(composed("model=tiny"))["model.name"] == "tiny"
    both = ("layout=crosscoder", "model=tiny", "+model@layout.model=custom", f"layout.model.path={tmp_path}/it")
    assert flat_settings(composed(*both))["layout.model.path"] == f"{tmp_path}/it"
    assert run_folder(*both).name.startswith("tiny_it-resid_mid.3_6_9-gated-")
    # Settings that will be refused have no name.
    assert "model.name" not in flat_settings(composed("model=tiny", "model.path=gpt2"))


def test_the_folder_of_an_evaluation_begins_with_eval():
    assert run_folder("task=eval", "sae.path=/some/where").name.startswith(
        "eval-smollm2_135m_instruct_q4_1-resid_mid.3-"
    )


def test_only_the_folder_of_a_finished_run_is_not_reused():
    first = run_folder()
    for state, wanted in (
        ("running", first.name),
        ("interrupted", first.name),
        ("failed", first.name),
        ("refused", first.name),
        ("finished", f"{first.name}-2"),
    ):
        first.mkdir(parents=True, exist_ok=True)
        (first / "status.json").write_text(json.dumps({"state": state}))
        assert run_folder().name == wanted, state
    second = run_folder()
    second.mkdir()
    (second / "status.json").write_text(json.dumps({"state": "interrupted"}))
    assert run_folder() == second
    (second / "status.json").write_text(json.dumps({"state": "finished"}))
    assert run_folder().name == f"{first.name}-3"
    # A damaged status is not taken for a finished run.
    (first / "status.json").write_text("half of")
    assert run_folder() == first


def test_a_path_means_the_same_in_every_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a" / "text").mkdir(parents=True)
    (tmp_path / "b" / "text").mkdir(parents=True)
    files = ("dataset=text_files", "dataset.path=text", "model=custom", "model.path=./model")
    folders = []
    for place in ("a", "b"):
        monkeypatch.chdir(tmp_path / place)
        flat = flat_settings(composed(*files))
        assert flat["dataset.path"] == str(tmp_path / place / "text")
        assert flat["model.path"] == str(tmp_path / place / "model")
        folders.append(run_folder(*files))
    assert folders[0] != folders[1]
    assert run_folder(*files[:1], f"dataset.path={tmp_path}/b/text", *files[2:]) == folders[1]


def test_a_hub_name_is_kept_unless_a_folder_has_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert flat_settings(composed("model=gpt2"))["model.path"] == "gpt2"
    (tmp_path / "gpt2").mkdir()
    assert flat_settings(composed("model=gpt2"))["model.path"] == str(tmp_path / "gpt2")


def test_a_glob_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    flat = flat_settings(composed("dataset=text_files", "dataset.path='code/**/*.java'"))
    assert flat["dataset.path"] == f"{tmp_path}/code/**/*.java"


def test_a_tokenizers_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    flat = flat_settings(composed("model=custom", "model.path=gpt2", "model.tokenizer=./mine"))
    assert (flat["model.path"], flat["model.tokenizer"]) == ("gpt2", str(tmp_path / "mine"))

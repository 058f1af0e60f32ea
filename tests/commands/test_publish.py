"""`python -m fsae.publish`: to a hub on loopback and back, and into folders."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download

import fsae
from fsae.commands.publish import main
from fsae.export.saelens import save_saelens
from fsae.outputs.latent_store import LatentStore
from tests.export.releases.test_crosscoder_learning import ORIGIN, crosscoder
from tests.language_models.fake_hub import WritableHub
from tests.publishing.evaluated_run import write_run
from tests.publishing.test_circuit_tracer import saved, sweep_of

HOOK = "blocks.1.hook_resid_mid"
Runs = dict[str, Path]
Captured = pytest.CaptureFixture[str]


def test_what_was_pushed_is_downloaded_and_gives_the_same_codes(runs: Runs, hub: WritableHub, capfd: Captured):
    assert main([str(runs["text"]), "--repo", "me/tiny", "--pages", "--license", "mit"]) == 0
    assert capfd.readouterr().out.endswith(f"{hub.address}/me/tiny\n")
    assert hub.messages == [f"Publish {runs['text'].name} with fsae"]
    # As the card says it.
    folder = snapshot_download("me/tiny", allow_patterns=f"{HOOK}/*", endpoint=hub.address)
    there, here = fsae.load(f"{folder}/{HOOK}"), fsae.load(runs["text"])
    x = torch.randn(50, here.d_in, generator=torch.Generator().manual_seed(0))
    assert torch.equal(there.encode(x), here.encode(x))
    assert there.provenance == here.provenance
    assert there.density is not None
    assert (Path(folder) / HOOK / "latents" / "index.html").is_file()
    assert not (Path(folder) / "README.md").exists()


def test_the_members_of_a_population_come_back_too(runs: Runs, hub: WritableHub):
    assert main([str(runs["population"]), "--repo", "me/both", "--private"]) == 0
    assert hub.private == {"me/both"}
    folder = snapshot_download("me/both", allow_patterns="sae/*", endpoint=hub.address)
    there, here = fsae.load(f"{folder}/sae", member=1), fsae.load(runs["population"], member=1)
    assert torch.equal(there.W_dec, here.W_dec)


def test_several_runs_share_a_repository_with_add(runs: Runs, hub: WritableHub, capfd: Captured):
    text, population = str(runs["text"]), str(runs["population"])
    assert main([text, "--repo", "me/all"]) == 0
    assert main([population, "--repo", "me/all"]) == 2
    assert f"me/all exists and holds other files (README.md, {HOOK}/cfg.json" in capfd.readouterr().err
    assert main([population, "--repo", "me/all", "--add", "--folder", "features"]) == 0
    assert {"README.md", f"{HOOK}/cfg.json", "features/README.md", "features/1/cfg.json"} < set(hub.repos["me/all"])


def test_a_dry_run_prints_files_and_card_and_asks_no_server(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capfd: Captured
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main([str(runs["text"]), "--repo", "me/tiny", "--dry-run"]) == 0
    printed = capfd.readouterr().out
    size = (runs["text"] / "sae" / "sae_weights.safetensors").stat().st_size
    assert f"{size:>14,}  {HOOK}/sae_weights.safetensors\n" in printed
    assert "  bytes in 7 files; nothing is pushed\n" in printed
    assert "\nREADME.md:\n\n---\nlibrary_name: saelens\n" in printed


def test_the_latents_are_written_in_all_layouts(runs: Runs, tmp_path: Path, capfd: Captured):
    run = runs["text"]
    targets = ["--neuronpedia", "--neuronpedia-upload", "--saedashboard"]
    words = [word for target in targets for word in (target, str(tmp_path / target[2:]))]
    assert main([str(run), *words, "--set", "my-set", "--creator", "Me", "--model", "gpt2-small", "--labels"]) == 0
    source = tmp_path / "neuronpedia" / "gpt2-small" / "1-my-set"
    assert {path.name for path in source.iterdir()} == {
        "release.jsonl", "model.jsonl", "sourceset.jsonl", "source.jsonl", "features", "activations", "explanations",
    }  # fmt: skip
    assert json.loads((source / "source.jsonl").read_text())["dataset"] == "python_source"
    (dashboards,) = (tmp_path / "saedashboard").iterdir()
    assert dashboards.name == f"gpt2-small_my-set_{HOOK}_48"
    body = json.loads((tmp_path / "neuronpedia-upload" / "batch-0.json").read_text())
    assert (body["modelId"], body["source"]) == ("gpt2-small", "1-my-set")
    table = LatentStore(run / "latents").table
    largest_codes = (table["max"] * table["decoder_norm"]).to_numpy()
    counts = table["count"].to_numpy()
    assert len(body["features"]) == (counts > 0).sum()
    # The largest code of a latent is the largest number of its examples.
    for feature in body["features"]:
        largest = max(max(example["values"]) for example in feature["activations"])
        assert largest == pytest.approx(largest_codes[feature["index"]], rel=1e-4)
    printed = capfd.readouterr().out
    assert str(source) in printed
    assert str(dashboards) in printed
    dead = (counts == 0).sum()
    assert (f"({dead} latents are never on and left out)" in printed) == (dead > 0)


def test_names_follow_from_the_run(runs: Runs, tmp_path: Path):
    assert main([str(runs["text"]), "--neuronpedia", str(tmp_path)]) == 0
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == [f"1-{runs['text'].name}"]


def test_bad_input_is_explained(runs: Runs, tmp_path: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch):
    run, out = str(runs["text"]), str(tmp_path / "out")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    cases = {
        (str(tmp_path), "--repo", "me/sae"): "expected a dictionary (cfg.json here or in sae/), found an empty folder",
        (run, "--repo", "sae"): "a repository's name is owner/name",
        (run, "--repo", "me/sae", "--member", "1"): "member is 1, but it holds one dictionary",
        (run, "--neuronpedia", out, "--set", "My Set"): "the source set's name is 'My Set'",
        (str(runs["population"]), "--saedashboard", out, "--member", "0"): "these layouts show text; only --repo",
        (str(runs["population"]), "--saedashboard", out): "choose one",
    }
    for words, message in cases.items():
        assert main(list(words)) == 2
        error = capfd.readouterr().err
        assert error.startswith("fsae.publish: ")
        assert message in error
    assert not (tmp_path / "out").exists()
    assert main([run, "--repo", "me/sae"]) == 1
    error = capfd.readouterr().err
    assert "cannot be reached" in error
    assert "hf_secret_token" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name a target: --repo, --neuronpedia"),
        (("--neuronpedia", "out", "--dry-run"), "--dry-run is for --repo alone"),
    ],
)
def test_contradictory_arguments_are_refused(words: tuple[str, ...], message: str, capfd: Captured):
    with pytest.raises(SystemExit) as ended:
        main(["run", *words])
    assert ended.value.code == 2
    assert message in capfd.readouterr().err


def test_the_module_is_a_command():
    done = subprocess.run([sys.executable, "-m", "fsae.publish", "--help"], capture_output=True, text=True, check=True)
    assert "--neuronpedia-upload" in done.stdout


def test_numbers_are_written_in_saebench_s_files(runs: Runs, tmp_path: Path, capfd: Captured):
    run = shutil.copytree(runs["text"], tmp_path / "run")
    assert main([str(run), "--saebench", str(tmp_path / "scratch")]) == 2
    assert "has no evaluation that SAEBench has, too" in capfd.readouterr().err
    write_run(run)
    assert main([str(run), "--saebench", str(tmp_path / "scratch")]) == 0
    printed = capfd.readouterr()
    path = tmp_path / "scratch" / "core" / "run_custom_sae_eval_results.json"
    assert f"SAEBench:            {path}\n" in printed.out
    assert "read the kind of a file from its path, and 'scr' is in" in printed.err
    sae = json.loads(path.read_text())["sae_cfg_dict"]
    assert (sae["architecture"], sae["d_sae"], sae["training_tokens"]) == ("topk", 48, 4096)
    assert (sae["hook_name"], sae["hook_layer"]) == (HOOK, 1)


def test_transcoders_of_all_layers_are_written_for_circuit_tracer(runs: Runs, tmp_path: Path, capfd: Captured):
    sweep = sweep_of(tmp_path / "sweep", 2)
    layers = [saved(sweep / str(layer), layer) for layer in (0, 1)]
    out = tmp_path / "out"
    for named in ([sweep], layers):
        assert main([*map(str, named), "--circuit-tracer", str(out)]) == 0
        assert capfd.readouterr().out == f"circuit-tracer:      {out} (2 layers)\n"
    assert {path.name for path in out.iterdir()} == {"config.yaml", "layer_0.safetensors", "layer_1.safetensors"}
    with pytest.raises(SystemExit):
        main([*map(str, layers), "--circuit-tracer", str(out), "--saebench", str(out)])
    assert "only --circuit-tracer takes several runs" in capfd.readouterr().err
    # A run's settings name the language model, and with it the number of its layers.
    run = shutil.copytree(runs["text"], tmp_path / "run", ignore=shutil.ignore_patterns("sae"))
    saved(run / "sae", 0)
    assert main([str(run), "--circuit-tracer", str(out)]) == 2
    assert "no transcoder of layer 1, 2, 3, and circuit-tracer needs one for each of the 4" in capfd.readouterr().err


def test_a_crosscoder_is_written_for_crosscoder_learning(tmp_path: Path, capfd: Captured):
    run, out = tmp_path / "sae", tmp_path / "out"
    density = torch.full((13,), 0.25)
    save_saelens(crosscoder("batch_topk"), run, ORIGIN, density)
    for _ in range(2):
        assert main([str(run), "--crosscoder-learning", str(out)]) == 0
        assert capfd.readouterr().out == f"crosscoder_learning: {out} (BatchTopKCrossCoder)\n"
    # 13 latents that are on for a quarter of the samples.
    assert json.loads((out / "config.json").read_text())["k"] == 3
    assert fsae.load(out).provenance == ORIGIN
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o644}
    assert main([str(run), "--crosscoder-learning", str(run)]) == 2
    assert f"{run} exists and is no such export" in capfd.readouterr().err
    # Its directions are of several sites.
    assert main([str(run), "--neuronpedia", str(tmp_path / "neuronpedia")]) == 2
    assert f"{run} writes 2 sites, and in these layouts a latent has one direction" in capfd.readouterr().err

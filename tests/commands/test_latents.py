"""`python -m fsae.latents`: the pages of a run, of a prompt, of two runs, and of a dictionary in SAELens' format."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fsae
from fsae.analysis.origin import Origin
from fsae.commands.latents import main, place_of
from fsae.evaluation.choices import CHOICES
from fsae.evaluation.suite import chosen
from fsae.export.saelens import save_saelens
from fsae.language_models.interventions import Ablate, Add
from fsae.outputs.latent_store import HIT_COLUMNS, LATENT_COLUMNS, LatentStore
from fsae.outputs.run_folder import RunFolder
from fsae.surface.prompt import view_prompt
from tests.export.releases.test_crosscoder_learning import ORIGIN, crosscoder
from tests.processes import begun, ended, finished
from tests.publishing.test_circuit_tracer import CROSS_LAYER, of_layers, saved

RUNS = {
    "text": ["debug=tiny", "arch=batch_topk", "arch.d_sae=64", "arch.k=4", "eval=[vectors,latents]"],
    "digits": ["source=mnist", "arch=topk", "arch.d_sae=32", "arch.k=4", "suite=quick", "tracking=none",
               "trainer.samples=8192", "trainer.batch_size=256", "eval=[latents]"],
    "several": ["source=sparse_sources", "population.size=2", "arch=topk", "arch.k=3", "suite=quick", "tracking=none",
                "trainer.samples=4096", "eval=[vectors,latents]"],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on text, one on pictures, and a population on synthetic vectors."""
    outputs = tmp_path_factory.mktemp("outputs")
    found = {}
    for name, words in RUNS.items():
        done = finished(f"name={name}", *words, outputs=outputs)
        assert done.returncode == 0, done.stdout
        found[name] = next((outputs / "runs").glob(f"{name}-*"))
        for page in found[name].glob("latents/**/index.html"):
            assert f"latents:     {page}" in done.stdout
    return found


def test_a_run_on_text_has_a_store_pages_and_numbers(runs: dict[str, Path]):
    dictionary = fsae.load(runs["text"])
    table, meta = dictionary.latents, dictionary.latent_store.meta
    assert list(table) == list(LATENT_COLUMNS)
    assert list(dictionary.latent_store.hits(3)) == list(HIT_COLUMNS)
    assert len(table) == 64 == meta.d_sae
    assert (meta.kind, meta.model, meta.site, meta.part) == ("text", "tiny", "resid_mid.1", "held_out")
    assert meta.dataset == "python_source"
    assert list(meta.meanings) == list(meta.aggregates)
    assert meta.contexts * meta.context == meta.positions + sum(meta.excluded.values())
    assert sum(table["count"]) == pytest.approx(sum(table["density"]) * meta.positions)
    results = json.loads((runs["text"] / "results.json").read_text())
    assert results["eval/token_purity"] == pytest.approx(meta.aggregates["token_purity"])
    assert results["latents_control"] == [meta.control]
    assert results["meanings"]["eval/token_purity"]["text"]
    assert meta.control_latents == 256
    assert any(trigger is not None for trigger in table["trigger"])
    assert not (runs["text"] / "latents.unfinished").exists()


def test_the_pages_name_the_run_and_the_way_to_open_it(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    page = (runs["text"] / "latents" / "index.html").read_text()
    commit = json.loads((runs["text"] / "tracking.json").read_text())["tags"]["mlflow.source.git.commit"]
    for fact in ("32768 samples of python_source, with seed 0", f"commit {commit}", "python_source, held-out part"):
        assert fact in page
    monkeypatch.chdir(runs["text"].parents[2])
    for run, member in ((runs["text"], None), (runs["several"], 1)):
        origin = Origin.of(run, member)
        assert json.dumps(origin.path) in (run / "latents" / str(member or "") / "index.html").read_text()
        assert fsae.load(origin.path).latent_store.folder == run / "latents" / str(member or "")


def test_pictures_have_pages_of_samples(runs: dict[str, Path]):
    store = LatentStore(runs["digits"] / "latents")
    assert (store.meta.kind, store.meta.picture, store.meta.context) == ("samples", [8, 8], 1)
    hits = store.hits()
    assert {len(store.samples[context]) for context in hits["context"]} == {64}
    assert not any(isinstance(label, str) for label in store.table["label"])
    assert (runs["digits"] / "latents" / "index.html").exists()


def test_every_member_of_a_population_has_pages(runs: dict[str, Path]):
    for member in range(2):
        assert (runs["several"] / "latents" / str(member) / "index.html").exists()
        assert len(fsae.load(runs["several"], member=member).latents) == fsae.load(runs["several"], member=0).d_sae


def test_the_jobs_of_a_sweep_are_not_measured():
    evaluations = {name: CHOICES[name]() for name in ("vectors", "latents")}
    provided = frozenset({"one_input"})
    assert list(chosen(evaluations, provided)) == ["vectors", "latents"]
    assert list(chosen(evaluations, provided, in_sweep=True)) == ["vectors"]
    # `checked` leaves `in_sweep` out if the command names some.
    assert list(chosen(evaluations, provided, named=frozenset({"latents"}))) == ["vectors", "latents"]


def test_a_new_pass_replaces_the_store(runs: dict[str, Path], tmp_path: Path):
    run = tmp_path / "copy"
    shutil.copytree(runs["text"], run)
    (run / "latents.views").mkdir(exist_ok=True)
    (run / "latents.views" / "prompt.html").write_text("kept")
    before = fsae.load(run).latent_store.meta
    given = ("--tokens", "12_000", "--train-text", "eval.latents.top=5")
    done = ended(begun("fsae.latents", str(run), *given, outputs=tmp_path))
    assert done.returncode == 0, done.stdout
    assert (run / "latents.views" / "prompt.html").read_text() == "kept"
    after = fsae.load(run).latent_store
    assert (after.meta.part, after.meta.top) == ("train", 5)
    assert after.meta.contexts * after.meta.context >= 12_000 > before.contexts * before.context
    assert max(after.hits()["rank"]) == 4
    assert f"latents:     {run / 'latents' / 'index.html'}" in done.stdout


def test_the_loss_change_of_a_prompts_latent_is_that_of_an_ablation(runs: dict[str, Path]):
    """The language model is causal: the loss after token t is that of the text that ends at t."""
    dictionary = fsae.load(runs["text"])
    model, site = dictionary.language_model, dictionary.site
    assert model is not None
    assert site is not None
    view = view_prompt(dictionary, "def factorial(n):", model, dictionary.latent_store, latents=3)
    (row,) = model.token_ids(["def factorial(n):"])
    assert "".join(view.tokens) == "def factorial(n):"
    assert view.latents[0] == []
    largest = np.abs(dictionary.latents["max"].to_numpy(float, na_value=0))
    shown = {latent for found in view.latents for latent, _, _ in found if largest[latent] > 0}
    assert view.largest == {latent: pytest.approx(largest[latent]) for latent in shown}
    checked = 0
    for position, found in enumerate(view.latents[:-1]):
        plain = F.cross_entropy(model.logits_of(row[: position + 1])[-1:], row[position + 1 : position + 2])
        assert view.losses[position] == pytest.approx(plain.item(), abs=1e-4)
        for latent, activation, change in found:
            codes = dictionary.encode(model.model.activations(row[None], [site])[site][0, position])
            assert activation == pytest.approx(codes[latent].item())
            with dictionary.intervene(Ablate(latent, scope="last")) as edited:
                logits = edited.logits_of(row[: position + 1])[-1:]
            ablated = F.cross_entropy(logits, row[position + 1 : position + 2])
            assert change == pytest.approx((ablated - plain).item(), abs=1e-4)
            checked += abs(ablated - plain) > 1e-3
    assert checked > 3
    assert all(change is None for _, _, change in view.latents[-1])
    assert view.losses[-1] is None


def test_a_prompt_and_a_comparison_get_pages_of_their_own(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    run = runs["text"]
    assert main([str(run), "--prompt", "import <b>torch</b>"]) == 0
    prompt = Path(capsys.readouterr().out.split("prompt:", 1)[1].strip())
    assert prompt.parent == run / "latents.views"
    assert "<b>torch" not in prompt.read_text()
    for fact in ("resid_mid.1", "32768 samples of python_source, with seed 0"):
        assert fact in prompt.read_text()
    assert (prompt.parent / "../latents/index.html").is_file()
    assert '"pages": "../latents/index.html"' in prompt.read_text()
    assert main([str(run), str(run)]) == 0
    comparison = Path(capsys.readouterr().out.split("comparison:", 1)[1].strip())
    assert comparison == run / "latents.views" / f"beside-{run.name}" / "index.html"
    # They are no pages of the run.
    assert RunFolder(run).latent_pages == [run / "latents" / "index.html"]


def test_members_of_a_population_are_compared(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    run = str(runs["several"])
    assert main([run, run, "--member", "0", "--member", "1"]) == 0
    comparison = Path(capsys.readouterr().out.split("comparison:", 1)[1].strip())
    assert comparison.parent == runs["several"] / "latents" / "0.views" / f"beside-{runs['several'].name}-1"
    assert "member 1" in comparison.read_text()
    assert RunFolder(runs["several"]).latent_pages == [
        runs["several"] / "latents" / str(member) / "index.html" for member in range(2)
    ]


def test_the_place_of_a_dictionary_between_sites_follows_from_its_files(tmp_path: Path):
    transcoder, clt, crossing = saved(tmp_path / "one", 1), tmp_path / "several", tmp_path / "crosscoder"
    of_layers("jumprelu", CROSS_LAYER, clt)
    save_saelens(crosscoder("jumprelu"), crossing, ORIGIN)
    assert place_of(transcoder, []) == ["site=mlp_in", "site.layer=1", "layout=transcoder", "layout.target=mlp_out"]
    several = ["layout=cross_layer_transcoder", "layout.layers=[0,1,2]", "layout.target=mlp_out"]
    assert place_of(clt, []) == ["site=mlp_in", "site.layer=0", *several]
    assert place_of(clt, ["site.layer=0"]) == several
    assert place_of(crossing, ["site.layer=0"]) == ["layout=crosscoder", "layout.layers=[0,1]"]
    assert place_of(transcoder, ["layout=transcoder"]) == ["site=mlp_in", "site.layer=1"]
    # A crosscoder of two models has each site twice; the user names the models.
    hook = "blocks.1.hook_resid_mid"
    two = replace(ORIGIN, hook_name=hook, hook_names=[hook, hook], model_names=["one", "other"])
    save_saelens(crosscoder("jumprelu"), tmp_path / "models", two)
    wanted = ["site=resid_mid", "site.layer=1", "layout=crosscoder", "layout.layers=[]"]
    assert place_of(tmp_path / "models", ["model=[one,other]", "layout.model.weights=random"]) == wanted


def test_a_dictionary_in_saelens_format_gets_a_run_of_its_own(runs: dict[str, Path], tmp_path: Path):
    done = ended(begun("fsae.latents", str(runs["text"] / "sae"), "debug=tiny", "name=imported", outputs=tmp_path))
    assert done.returncode == 0, done.stdout
    (run,) = (tmp_path / "runs").glob("eval-imported-*")
    own, imported = fsae.load(runs["text"]).latents, LatentStore(run / "latents").table
    assert imported["count"].tolist() == own["count"].tolist()
    assert imported["max"].tolist() == pytest.approx(own["max"].tolist(), rel=1e-5, nan_ok=True)
    assert main([str(run), "--prompt", "def f(x): pass"]) == 0
    # The run that made the store stands for the dictionary, in Python too.
    loaded = fsae.load(run)
    assert loaded.latents.equals(imported)
    assert loaded.folder == (runs["text"] / "sae").resolve()
    assert loaded.settings is None
    assert loaded.largest_activations.max() == pytest.approx(imported["max"].max())
    with loaded.intervene(Add(int(imported["count"].to_numpy().argmax()), 1.0)) as model:
        assert model.name == "tiny"
    # The site is known from the run, if the dictionary's own file does not name it.
    shutil.copytree(run, tmp_path / "nameless")
    fsae.save(loaded.autoencoder, tmp_path / "plain")
    config = tmp_path / "nameless" / "config.yaml"
    config.write_text(config.read_text().replace(str(runs["text"] / "sae"), str(tmp_path / "plain")))
    nameless = fsae.load(tmp_path / "nameless")
    assert nameless.provenance.hook_name is None
    assert str(nameless.site) == "resid_mid.1"
    assert nameless.latent_store.meta.weights == loaded.latent_store.meta.weights
    # Its latents can be looked at again in its own folder.
    again = ended(begun("fsae.latents", str(run), "--tokens", "3_000", outputs=tmp_path))
    assert again.returncode == 0, again.stdout
    assert "changed since" not in again.stdout
    assert fsae.load(run).latent_store.meta.contexts < LatentStore(runs["text"] / "latents").meta.contexts
    assert f"latents:     {run / 'latents' / 'index.html'}" in again.stdout


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_bad_input_is_refused_in_one_line(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "no such folder" in refusal(capsys, str(tmp_path / "nowhere"))
    assert "name one folder" in refusal(capsys, "eval.latents.top=3")
    assert "did not read a language model" in refusal(capsys, str(runs["digits"]), "--prompt", "a text")
    assert "needs two" in refusal(capsys, str(runs["text"]), "--prompt", "a")
    assert "needs two" in refusal(capsys, str(runs["text"]), "--prompt", "")
    assert "--member is given 2 times for 1 folders" in refusal(
        capsys, str(runs["text"]), "--member", "0", "--member=1"
    )
    assert "cannot be matched" in refusal(capsys, str(runs["text"]), str(runs["digits"]))
    assert "look at its latents first" in refusal(capsys, str(runs["text"] / "sae"), "--prompt", "a text")


def test_a_store_of_other_weights_another_version_or_damage_is_refused(runs: dict[str, Path], tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(runs["text"], run)
    with pytest.raises(ValueError, match="latent 64: the dictionary has the latents 0 to 63"):
        LatentStore(run / "latents").hits(64)
    meta = json.loads((run / "latents" / "meta.json").read_text())
    for change, message in (
        ({"weights": "0" * 16}, "is of another dictionary"),
        ({"version": 0}, "of version 0, and this fsae reads version 1"),
    ):
        (run / "latents" / "meta.json").write_text(json.dumps(meta | change))
        with pytest.raises(ValueError, match=message):
            _ = fsae.load(run).latents
    (run / "latents" / "meta.json").write_text(json.dumps(meta))
    whole = (run / "latents" / "latents.parquet").read_bytes()
    (run / "latents" / "latents.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"latents\.parquet is damaged or missing"):
        _ = fsae.load(run).latents
    shutil.rmtree(run / "latents")
    with pytest.raises(ValueError, match="no latent store; make it with"):
        _ = fsae.load(run).latents


def test_numbers_of_the_store_follow_the_rule_of_inference(runs: dict[str, Path]):
    """A batch_topk's codes follow its threshold: each is what its row of text gives alone."""
    dictionary = fsae.load(runs["text"])
    model, site, store = dictionary.language_model, dictionary.site, dictionary.latent_store
    assert model is not None
    assert site is not None
    for latent in store.table.nlargest(3, "count")["latent"]:
        top = store.hits(int(latent)).iloc[0]
        row = torch.tensor(store.tokens[top["context"]].astype("int64"))
        activations = model.model.activations(row[None], [site])[site][0].float()
        codes = dictionary.encode(activations)[:, latent]
        assert codes[top["position"]].item() == pytest.approx(top["value"], rel=1e-4)

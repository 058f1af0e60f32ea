"""Every layout from its settings to its files: resumed in a pack, exported, read back, measured, shown, published."""

import json
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import fsae
from fsae.commands.latents import main as look_at
from fsae.commands.publish import main as publish
from fsae.configuration.accept import accept
from fsae.configuration.origin import Origin
from fsae.configuration.schema import RunSettings, Task
from fsae.evaluation import ood
from fsae.language_models.packaged import packaged_folder
from fsae.language_models.settings import ModelSettings, Package
from fsae.outputs.run_folder import RunFolder
from fsae.runs.pack import run_pack
from fsae.sources.identity import other_model_identity
from fsae.training.gradient_learner import GradientLearner
from fsae.training.interruption import Interrupted
from tests.composition import composed
from tests.evaluation.test_autointerp import guessing
from tests.evaluation.test_probing import write as write_texts
from tests.latents.chat_server import ChatServer
from tests.runs.test_pack import SHORT, assert_same

SMALL = (
    *(word for word in SHORT if not word.startswith("eval.")), "suite.tokens=128", "arch=batch_topk", "arch.k=8",
    "arch.d_sae=64", "trainer.samples=2048", "source.max_norm_multiple=null",
)  # fmt: skip
MEASURED = ("eval=[vectors,splice]",)
LAYERS = "layout.layers=[0,1,2,3]"
LAYOUTS = {
    "autoencoder": [],
    "transcoder": ["layout=transcoder"],
    "skip transcoder": ["layout=skip_transcoder"],
    "low-rank path": ["layout=skip_transcoder", "layout.skip_rank=4"],
    "crosscoder": ["layout=crosscoder", "layout.layers=[0,2]"],
    "two models": ["layout=crosscoder", "layout.layers=[]", "+model@layout.model=tiny", "layout.model.weights=random"],
    "partitioned": ["layout=crosscoder", "layout.layers=[0,2]", "layout.exclusive=0.25"],
    "per layer": ["layout=per_layer_transcoder", LAYERS],
    "cross-layer": ["layout=cross_layer_transcoder", LAYERS],
    "pair": ["layout=jacobian_pair", "arch=topk", "arch.k=8", "arch.d_sae=64"],
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
SEVERAL = {"crosscoder", "two models", "partitioned"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for path in sorted(Path(fsae.__file__).parent.glob("training/*.py")):
        shutil.copyfile(path, folder / f"{path.stem}.txt")
    return folder


def job(outputs: Path, text: Path, layout: str, *overrides: str, name: str | None = None) -> tuple[RunSettings, Origin]:
    words = [*SMALL, "dataset=text_files", f"dataset.path={text}", *LAYOUTS[layout], *(overrides or MEASURED)]
    # The last choice of a group counts.
    chosen = {word.partition("=")[0]: word for word in words}
    config = composed(*chosen.values())
    OmegaConf.update(config, "paths.outputs", str(outputs))
    return accept(config, outputs / (name or layout), list(chosen.values()))


def finished(jobs: Sequence[tuple[RunSettings, Origin]]) -> dict[str, dict[str, Any]]:
    """Run jobs in one pack, and return their numbers by the names of their folders."""
    outcomes = run_pack(jobs)
    assert [each.error for each in outcomes] == [None] * len(jobs)
    return {origin.folder.name: outcome.results or {} for (_, origin), outcome in zip(jobs, outcomes, strict=True)}


@pytest.fixture(scope="module")
def runs(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each layout, all in one pack; the folders have the layouts' names."""
    outputs = tmp_path_factory.mktemp("outputs")
    finished([job(outputs, text, layout) for layout in LAYOUTS])
    return outputs


@pytest.mark.parametrize("layout", ["two models", "pair"])
def test_a_run_of_a_pack_is_what_it_is_alone(layout: str, runs: Path, text: Path, tmp_path: Path):
    finished([job(tmp_path, text, layout)])
    assert_same(tmp_path / layout, runs / layout)


def test_every_layout_resumes_where_it_was_stopped(
    runs: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    update, updates = GradientLearner.update, []

    def interrupted(self: GradientLearner, *arguments: object) -> None:
        update(self, *arguments)  # pyright: ignore[reportArgumentType]
        updates.append(self)
        # Each of eleven learners has made five steps of eight.
        if len(updates) == 5 * 11:
            signal.raise_signal(signal.SIGTERM)

    jobs = [job(tmp_path, text, layout) for layout in LAYOUTS]
    with monkeypatch.context() as patched:
        patched.setattr(GradientLearner, "update", interrupted)
        assert {type(each.error) for each in run_pack(jobs)} == {Interrupted}
    finished(jobs)
    for layout in LAYOUTS:
        assert_same(tmp_path / layout, runs / layout)


def test_a_run_of_two_models_continues_with_the_same_second_one_alone(
    runs: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(runs / "two models", tmp_path / "two models")
    pretrained = ModelSettings(package=Package.tiny)
    monkeypatch.setattr("fsae.runs.pack.other_model_identity", lambda model: other_model_identity(pretrained))
    (outcome,) = run_pack([job(tmp_path, text, "two models")])
    assert "the weights of layout.model" in str(outcome.error)


def test_only_the_jobs_of_a_second_model_that_is_not_there_are_refused(text: Path, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(packaged_folder(Package.tiny), model)
    second = ("+model@layout.model=custom", f"layout.model.path={model}", *MEASURED)
    jobs = [job(tmp_path, text, "two models", *second), job(tmp_path, text, "autoencoder")]
    # The folder existed when the settings were checked.
    shutil.rmtree(model)
    refused, done = run_pack(jobs)
    assert str(refused.error).startswith(f"layout.model.path: '{model}' is no folder on this machine")
    assert not (tmp_path / "two models").exists()
    assert done.error is None
    assert done.results
    with pytest.raises(ValueError, match=r"^layout\.model\.path: "):
        job(tmp_path, text, "two models", *second)


def members(run: Path) -> list[fsae.Dictionary]:
    """The dictionaries of a run: one, or the two autoencoders of a pair."""
    if (run / "sae" / "0").is_dir():
        return [fsae.load(run, member=member) for member in range(2)]
    return [fsae.load(run)]


def test_exported_dictionaries_have_the_numbers_of_their_runs(runs: Path, text: Path, tmp_path: Path):
    # By folder: the layout in the settings, and the names of the run's numbers.
    read = {f"{layout}/sae": (layout, [], "") for layout in LAYOUTS if layout != "pair"}
    for number, site in enumerate(["mlp_in", "mlp_out"]):
        read[f"pair/sae/{number}"] = ("autoencoder", [f"site={site}"], f"{number}/")
    found = finished(
        [
            job(tmp_path, text, layout, "task=eval", f"sae.path={runs / folder}", *MEASURED, *more, name=str(place))
            for place, (folder, (layout, more, _)) in enumerate(read.items())
        ]
    )
    for place, (folder, (_, _, prefix)) in enumerate(read.items()):
        wanted = json.loads((runs / folder.partition("/")[0] / "results.json").read_text())
        for name in ("fvu", "l0", "ce_spliced"):
            of_run = wanted[f"eval/{prefix}{name}"]
            assert found[str(place)][f"eval/{name}"] == pytest.approx(of_run, rel=1e-4), folder


def test_a_dictionary_of_two_models_leaves_out_what_is_massive_at_a_site_of_either(text: Path, tmp_path: Path):
    limited = [*MEASURED, "source.max_norm_multiple=1.2"]
    made = finished([job(tmp_path, text, "two models", *limited)])["two models"]
    assert 0 < made["eval/massive_share"] < 1
    sae = f"sae.path={tmp_path / 'two models' / 'sae'}"
    again = finished([job(tmp_path, text, "two models", *limited, "task=eval", sae, name="again")])["again"]
    for name in ("massive_share", "fvu"):
        assert again[f"eval/{name}"] == pytest.approx(made[f"eval/{name}"], rel=1e-4)


@each_layout
def test_a_loaded_dictionary_computes_as_in_its_files(layout: str, runs: Path, tmp_path: Path):
    for dictionary in members(runs / layout):
        x = torch.randn(30, dictionary.d_in, generator=torch.Generator().manual_seed(0))
        fsae.save(dictionary, tmp_path / "saved")
        again = fsae.load(tmp_path / "saved")
        assert torch.equal(again.encode(x), dictionary.encode(x))
        assert torch.equal(again(x), dictionary(x))
        assert again.provenance == dictionary.provenance
        if dictionary.autoencoder.ends.same:
            active = (dictionary.encode(x) != 0).sum(1).float().mean().item()
            assert fsae.evaluate(dictionary, x)["eval/l0"] == pytest.approx(active)


@pytest.mark.parametrize("layout", ["two models", "pair"])
def test_the_largest_activations_are_those_at_the_dictionary_s_own_sites(layout: str, runs: Path):
    for dictionary in members(runs / layout):
        largest = dictionary.largest_activations
        assert largest.shape == (64,)
        assert ((largest != 0) == (dictionary.density != 0)).all()


@pytest.fixture(scope="module")
def measured(runs: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The numbers of the runs by every evaluation of codes, and of latents, which write pages."""
    with ChatServer(guessing) as judge, pytest.MonkeyPatch.context() as patched:
        patched.setattr(ood, "shifted_names", list)
        return _measured(runs, write_texts(tmp_path_factory.mktemp("labelled")), judge.url)


def _measured(runs: Path, texts: Path, judge: str) -> dict[str, dict[str, Any]]:
    words = [
        "eval=[vectors,latents,mdl,amortisation,decoder_projection,probing,ood,autointerp]", "eval.latents.tokens=2000",
        "eval.latents.triggers=0", "eval.latents.control=0", "eval.probing.data=files", f"eval.probing.path={texts}",
        "eval.probing.k=[1,16]", "eval.probing.train=130", "eval.probing.test=60", "eval.probing.repeats=1",
        "eval.amortisation.steps=2", "eval.amortisation.samples=512", "eval.amortisation.batch_size=256",
        "eval.mdl.samples=256", "eval.mdl.batch_size=128", "eval.decoder_projection.samples=256",
        "eval.ood.domains=[arithmetic,order]", "eval.ood.train=130", "eval.ood.test=50", "eval.ood.repeats=1",
        f"eval.autointerp.url={judge}", "eval.autointerp.model=small", "eval.autointerp.latents=2",
    ]  # fmt: skip
    jobs = []
    for layout in LAYOUTS:
        config = composed(*SMALL, *words)
        config.task = Task.reevaluate
        jobs.append(accept(config, runs / layout, words))
    return finished(jobs)


@each_layout
def test_codes_are_measured_whatever_the_parts_and_the_linear_path(layout: str, measured: dict[str, dict[str, Any]]):
    numbers = {name.removeprefix("eval/"): value for name, value in measured[layout].items()}
    # The search begins at the encoder's codes, whose fvu `vectors` measures.
    assert numbers["amortisation_gap"] + numbers["amortisation_fvu"] == pytest.approx(numbers["fvu"], rel=1e-4)
    assert numbers["mdl_fvu"] < 1.1 * numbers["fvu"] + 0.1
    assert numbers["mdl_bits"] > 0
    assert 0 <= numbers["probing_auc_k1"] <= 1
    assert np.isfinite(numbers["decoder_projection"])
    assert 0 <= numbers["ood_answerable_k20"] <= 1
    assert numbers["autointerp_latents"] == 2


@pytest.mark.parametrize("layout", [each for each in LAYOUTS if each != "autoencoder"])
def test_an_evaluation_of_one_site_is_refused_before_anything_is_loaded(layout: str, text: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"eval\.circuits cannot be measured: the dictionary does not read and write"):
        job(tmp_path, text, layout, "eval=[circuits]")


@each_layout
def test_the_latents_of_every_layout_are_shown(
    layout: str, runs: Path, measured: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    for number, dictionary in enumerate(members(runs / layout)):
        assert len(dictionary.latents) == 64
        assert dictionary.latents["count"].to_numpy().any()
        chosen = ["--member", str(number)] if layout == "pair" else []
        assert look_at([str(runs / layout), "--prompt", "def f(x): return", *chosen]) == 0
        assert "prompt:      " in capsys.readouterr().out
    assert len(RunFolder(runs / layout).latent_pages) == len(members(runs / layout))


@each_layout
def test_every_layout_is_published_or_refused_in_a_sentence(
    layout: str, runs: Path, measured: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    run, results = str(runs / layout), {}
    assert publish([run, "--repo", "me/it", "--dry-run"]) == 0
    assert capfd.readouterr().out.count("sae_weights.safetensors") == len(members(runs / layout))
    for target in ("--circuit-tracer", "--crosscoder-learning", "--neuronpedia", "--saedashboard"):
        status = publish([run, target, str(tmp_path / target), *(["--member", "0"] if layout == "pair" else [])])
        found = capfd.readouterr()
        assert (status == 0) or found.err.startswith("fsae.publish: ")
        results[target] = status == 0
    one_direction = layout in ("autoencoder", "transcoder", "skip transcoder", "low-rank path", "pair")
    assert results == {
        # One transcoder is not one for each of the four layers, and circuit-tracer has no path between layers.
        "--circuit-tracer": layout in ("per layer", "cross-layer"),
        "--crosscoder-learning": layout in SEVERAL,
        "--neuronpedia": one_direction,
        "--saedashboard": one_direction,
    }

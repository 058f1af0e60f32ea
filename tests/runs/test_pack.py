"""Several runs in one process: each has the same results as a run of its own."""

import json
import logging
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from fsae import memory
from fsae.configuration.accept import accept
from fsae.configuration.origin import Origin
from fsae.configuration.schema import RunSettings, settings_of
from fsae.evaluation.evaluation import Evaluation
from fsae.evaluation.splice import Splice
from fsae.evaluation.vectors import Vectors
from fsae.export.provenance import Provenance
from fsae.export.saelens import save_saelens
from fsae.language_models import transformer_lens as transformer_lens_model
from fsae.language_models.packaged import packaged_folder
from fsae.language_models.settings import Package
from fsae.language_models.sites import Site
from fsae.outputs.metric_log import read_metrics
from fsae.outputs.run_log import run_log
from fsae.outputs.status import RunState, read_status
from fsae.runs import pack as run_module
from fsae.runs.pack import pack_key, run_experiment, run_pack
from fsae.sources import corpus
from fsae.sources.eeg import EEGSettings
from fsae.sources.harvest import Harvested, Harvester
from fsae.sources.identity import data_identity
from fsae.sources.in_memory import InMemorySource
from fsae.sources.mnist import MNISTSettings
from fsae.sources.shard import Part
from fsae.tracking.mlflow_upload import read_description
from fsae.training.gradient_learner import GradientLearner
from fsae.training.interruption import Interrupted
from fsae.training.settings import AdamSettings
from tests.architectures import SquaredSettings, build
from tests.composition import composed
from tests.sources.edf_file import write_edf
from tests.training.runs import differences

SHORT = (
    "debug=tiny",
    "eval.splice.tokens=128",
    "suite.samples=512",
    "suite.latents=512",
    "suite.batch_size=256",
    "trainer.batch_size=256",
    "trainer.log_every=4",
    "source.tokens=2048",
    "source.shard_tokens=1500",
    "source.seed=0",
)
# Each has its own λ, θ, learning rate, seed and length.
JOBS = {
    "standard": ["arch=standard", "loss.sparsity.weight=0.1", "seed=1", "trainer.samples=4096"],
    "gated": [
        "arch=gated", "loss.penalty.form=reconstruction", "loss.penalty.estimator=batch", "loss.penalty.weight=0.01",
        "seed=2", "trainer.samples=6000",
    ],
    "jumprelu": ["arch=jumprelu", "loss.penalty.weight=1e-3", "seed=2", "trainer.samples=4096"],
    "topk": ["arch=topk", "arch.k=8", "trainer.resample_every=1024", "trainer.dead_after=512", "trainer.samples=4096"],
    "batch_topk": ["arch=batch_topk", "arch.k=8", "seed=3", "arch.d_sae=128", "trainer.samples=2048"],
    "abs_topk": ["arch=abs_topk", "arch.k=4", "trainer.activation_scale=none", "trainer.samples=4096"],
    "kmeans": ["arch=kmeans", "arch.d_sae=32", "seed=2", "trainer.samples=4096"],
    "local_pca": ["arch=local_pca", "arch.d_sae=32", "arch.rank=7", "population.size=2", "trainer.samples=4096"],
    "pca": ["arch=pca", "arch.d_sae=8", "trainer.samples=4096"],
    "population": [
        "arch=topk", "arch.k=8", "population=mfr/base", "population.size=3", "population.mutual.match_every=3",
        "population.reinitialise.threshold=0.5", "population.reinitialise.every=4", "trainer.samples=4096",
    ],
    "pam": [
        "trainer=pam", "arch=gated", "arch.decoder_norm=free", "loss.penalty.weight=0.01", "trainer.samples=4096",
        "trainer.encoder_batches=2", "trainer.decoder_batches=2", "trainer.updates_per_batch=2",
    ],
    "pam population": [
        "trainer=pam", "arch=topk", "arch.k=8", "arch.decoder_norm=free", "population.size=2", "trainer.samples=4096",
        "population.mutual.weight=0.3", "population.mutual.directions=encoder", "trainer.encoder_batches=5",
        "trainer.memory=0.8", "trainer.updates_per_batch=2",
    ],
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def job(outputs: Path, name: str, *overrides: str, short: Sequence[str] = SHORT) -> tuple[RunSettings, Origin]:
    config: DictConfig = composed(*short, *overrides)
    OmegaConf.update(config, "paths.outputs", str(outputs))
    return accept(config, outputs / name, [*short, *overrides])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every exported autoencoder counts: those of a population's members are in their own folders."""
    files = sorted((folder / "sae").rglob("sae_weights.safetensors"))
    return {f"{file.parent.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def logged(folder: Path) -> list[tuple[int, dict[str, float]]]:
    return [
        (record.step, {name: value for name, value in record.metrics.items() if "_second" not in name})
        for record in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same(folder: Path, wanted: Path) -> None:
    states = [torch.load(each / "checkpoints" / "latest.pt", weights_only=True)["state"] for each in (folder, wanted)]
    for state in states:
        # The length of the file depends on the number of digits of the speed.
        state.pop("metrics_position")
    assert differences(*states) == []
    assert differences(weights(folder), weights(wanted)) == []
    assert json.loads((folder / "results.json").read_text()) == json.loads((wanted / "results.json").read_text())
    assert logged(folder) == logged(wanted)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every job runs alone; the folders have the jobs' names."""
    outputs = tmp_path_factory.mktemp("alone")
    for name, overrides in JOBS.items():
        run_experiment(*job(outputs, name, *overrides))
    return outputs


def test_each_run_of_a_pack_is_what_it_is_alone_whatever_becomes_of_the_others(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # One is already finished, one is busy, one diverges.
    run_experiment(*job(tmp_path, "topk", *JOBS["topk"]))
    busy = FileLock(tmp_path / "busy" / "run.lock")
    (tmp_path / "busy").mkdir()
    busy.acquire()
    opened = []

    def counted(settings: object) -> object:
        opened.append(settings)
        return transformer_lens_model.open_language_model(settings)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(corpus, "open_language_model", counted)
    overrides = {"busy": JOBS["topk"], "diverging": [*JOBS["standard"], "trainer.lr=1e30"], **JOBS}
    jobs = {name: job(tmp_path, name, *each) for name, each in overrides.items()}
    outcomes = dict(zip(jobs, run_pack(list(jobs.values())), strict=True))
    busy.release()

    assert len(opened) == 1
    assert "another process is running in" in str(outcomes["busy"].error)
    assert read_status(tmp_path / "busy") is None or read_status(tmp_path / "busy").state is RunState.refused  # pyright: ignore
    assert "became infinite or NaN" in str(outcomes["diverging"].error)
    status = read_status(tmp_path / "diverging")
    assert status is not None
    assert status.state is RunState.failed
    assert not (tmp_path / "diverging" / "results.json").exists()
    for name in JOBS:
        assert outcomes[name].error is None
        assert outcomes[name].results == json.loads((tmp_path / name / "results.json").read_text())
        assert_same(tmp_path / name, alone / name)
        status = read_status(tmp_path / name)
        assert status is not None
        assert status.state is RunState.finished


SITES = {
    "transcoder": ["layout=transcoder", "site.layer=2", "arch=topk", "arch.k=8"],
    "crosscoder": ["layout=crosscoder", "layout.layers=[0,3]", "arch=topk", "arch.k=8", "arch.d_sae=64"],
    "plain": ["site.layer=2", "site=mlp_out", "arch=gated", "trainer.samples=2048"],
}


def jobs_at_sites(outputs: Path, cache: str) -> list[tuple[RunSettings, Origin]]:
    short = [each for each in SHORT if not each.startswith("eval.")]
    own = ["trainer.samples=4096", f"source.cache={cache}", "eval=[vectors]"]
    return [job(outputs, name, *own, *overrides, short=short) for name, overrides in SITES.items()]


@pytest.fixture(scope="module")
def alone_at_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("alone")
    for alone in jobs_at_sites(outputs, "disk"):
        run_experiment(*alone)
    return outputs


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_runs_at_several_sites_share_one_harvest_and_are_what_they_are_alone(
    cache: str, alone_at_sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    harvests: list[tuple[Part, int, int]] = []
    harvest = Harvester.harvest

    def noted(self: Harvester, part: Part, number: int, count: int, sites: Sequence[Site], known: Any) -> Harvested:
        harvests.append((part, number, len(sites)))
        return harvest(self, part, number, count, sites, known)

    monkeypatch.setattr(Harvester, "harvest", noted)
    outcomes = run_pack(jobs_at_sites(tmp_path, cache))
    assert [each.error for each in outcomes] == [None] * 3
    # Two shards of training vectors, each harvested once for four sites.
    assert [each for each in harvests if each[0] is Part.train] == [(Part.train, 0, 4), (Part.train, 1, 4)]
    # Held-out vectors are read site by site, so they are harvested together only if they are kept.
    held_out = [sites for part, _, sites in harvests if part is Part.held_out]
    assert held_out == ([4] if cache == "disk" else [2, 2, 1])
    for name in SITES:
        assert_same(tmp_path / name, alone_at_sites / name)


def test_shards_of_all_sites_must_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # One site takes 2 x 1,500 vectors of 32 floats: 384 kB, and four sites take four times as much.
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=1e6))
    jobs = [job(tmp_path, str(layer), *JOBS["topk"], f"site.layer={layer}") for layer in range(4)]
    outcomes = run_pack(jobs)
    refused = r"shards of 4 streams .* lower source\.shard_tokens to at most 7\d\d, or hydra\.launcher\.max_jobs"
    assert all(re.search(refused, str(each.error)) for each in outcomes)


@pytest.mark.parametrize("evaluation", [Vectors, Splice])
def test_a_signal_in_the_evaluation_stops_it_and_nothing_is_trained_twice(
    evaluation: type[Evaluation], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    measure = evaluation.measure

    def signalled(*arguments: Any) -> object:
        signal.raise_signal(signal.SIGUSR2)
        return measure(*arguments)

    monkeypatch.setattr(evaluation, "measure", signalled)
    with pytest.raises(Interrupted):
        run_experiment(*job(tmp_path, "topk", *JOBS["topk"]))
    status = read_status(tmp_path / "topk")
    assert status is not None
    assert status.state is RunState.interrupted
    assert not (tmp_path / "topk" / "results.json").exists()

    monkeypatch.undo()
    monkeypatch.setattr(GradientLearner, "backward", None)
    run_experiment(*job(tmp_path, "topk", *JOBS["topk"]))
    assert_same(tmp_path / "topk", alone / "topk")


def test_stopped_before_it_had_a_state_it_stays_the_same_run_and_after_an_error_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    uids = []
    for ending in (Interrupted("SIGTERM"), ValueError("no such thing"), None):

        def opened(*arguments: object, ending: Exception | None = ending) -> None:
            assert ending is not None
            raise ending

        with monkeypatch.context() as patched:
            if ending is not None:
                patched.setattr(run_module, "open_sources", opened)
                with pytest.raises(type(ending)):
                    run_experiment(*job(tmp_path, "topk", *JOBS["topk"]))
            else:
                run_experiment(*job(tmp_path, "topk", *JOBS["topk"]))
        uids.append(read_description(tmp_path / "topk").uid)
    assert uids[0] == uids[1] != uids[2]


def test_a_log_holds_what_concerns_its_run_and_all_runs(tmp_path: Path):
    logging.getLogger().setLevel(logging.INFO)
    jobs = [job(tmp_path, name, *JOBS[name]) for name in ("standard", "gated")]
    with run_log(tmp_path / "standard"), run_log(tmp_path / "gated"):
        run_pack(jobs)
    standard, gated = ((tmp_path / name / "run.log").read_text() for name in ("standard", "gated"))
    assert "Standard: d_in 32" in standard
    assert "Standard: d_in 32" not in gated
    assert "Gated: d_in 32" in gated
    for said in (standard, gated):
        assert "training: 5,888 of 5,888 tokens" in said


def test_what_ends_the_stream_ends_all_its_runs(tmp_path: Path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("two words")
    text = ["dataset=text_files", f"dataset.path={tmp_path / 'text'}"]
    jobs = [job(tmp_path, name, *JOBS[name], *text) for name in ("standard", "gated")]
    with run_log(tmp_path / "standard"), run_log(tmp_path / "gated"):
        outcomes = run_pack(jobs)
    for name, outcome in zip(("standard", "gated"), outcomes, strict=True):
        status = read_status(tmp_path / name)
        assert status is not None
        assert status.state is RunState.failed
        assert status.failure is not None
        assert "data set text: none of its 1 documents is in the part" in status.failure.message
        assert status.failure.message.splitlines()[0] in (tmp_path / name / "run.log").read_text()
        assert isinstance(outcome.error, ValueError)


def test_data_that_are_not_there_are_refused_for_all_runs(tmp_path: Path):
    text = written_texts(tmp_path / "text")
    jobs = [
        job(tmp_path, name, *JOBS[name], "dataset=text_files", f"dataset.path={text}") for name in ("topk", "gated")
    ]
    # The file existed when the settings were checked.
    shutil.rmtree(text)
    outcomes = run_pack(jobs)
    assert all(isinstance(outcome.error, ValueError) and str(text) in str(outcome.error) for outcome in outcomes)
    status = read_status(tmp_path)
    assert status is not None
    assert status.state is RunState.refused
    assert not (tmp_path / "topk").exists()


def test_existing_autoencoders_are_evaluated_together(alone: Path, tmp_path: Path):
    names = ("standard", "batch_topk")
    outcomes = run_pack([job(tmp_path, name, "task=eval", f"sae.path={alone / name / 'sae'}") for name in names])
    for name, outcome in zip(names, outcomes, strict=True):
        assert outcome.error is None
        assert outcome.results is not None
        wanted = json.loads((alone / name / "results.json").read_text())
        assert outcome.results["eval/fvu"] == pytest.approx(wanted["eval/fvu"], rel=1e-5)
        assert outcome.results["eval/ce_spliced"] == pytest.approx(wanted["eval/ce_spliced"], rel=1e-5)
    # No training needs vectors, so none are harvested for it.
    assert list((tmp_path / "activations").rglob("held_out-*.safetensors"))
    assert not list((tmp_path / "activations").rglob("train-*"))


def test_what_did_not_count_in_training_does_not_count_in_evaluating_it(tmp_path: Path):
    short = ["trainer.samples=1024", "source.tokens=1024"]
    left_out = ["dataset.skip_positions=7", "dataset.exclude_tokens=[11,12]", "dataset.prefix='# A line'"]
    [made] = run_pack([job(tmp_path, "made", *short, *left_out)])
    assert made.error is None
    assert made.results is not None
    said = json.loads((tmp_path / "made" / "sae" / "cfg.json").read_text())["metadata"]
    assert said["seqpos_slice"] == [7, None]
    # The tokenizer's special tokens are included.
    assert {11, 12} < set(said["exclude_special_tokens"])
    assert said["prefix"] == "# A line"
    sae = f"sae.path={tmp_path / 'made' / 'sae'}"
    # These are other rows, so the runs are in two packs.
    [same] = run_pack([job(tmp_path, "same", *short, "task=eval", sae)])
    [other] = run_pack([job(tmp_path, "other", *short, "task=eval", sae, "dataset.prefix=def")])
    assert (same.error, other.error) == (None, None)
    assert same.results is not None
    assert other.results is not None
    assert same.results["eval/fvu"] == pytest.approx(made.results["eval/fvu"], rel=1e-5)
    assert other.results["eval/fvu"] != pytest.approx(made.results["eval/fvu"], rel=1e-3)


@pytest.mark.parametrize(
    ("override", "together"),
    [
        ("loss.sparsity.weight=0.7", True),
        ("arch.d_sae=99", True),
        ("seed=5", True),
        ("trainer.samples=2048", True),
        ("trainer.activation_scale=none", True),
        ("source.cache=none", True),
        ("source.seed=5", False),
        ("source.tokens=1024", False),
        ("trainer.batch_size=128", False),
        ("site.layer=2", True),
        ("layout=transcoder", True),
        ("dataset.context=64", False),
        ("suite.samples=300", False),
        ("task=eval", False),
    ],
)
def test_what_fits_into_one_pack(override: str, together: bool, tmp_path: Path):
    sae = []
    if override == "task=eval":
        save_saelens(build("standard"), tmp_path / "sae", Provenance())
        sae = [f"sae.path={tmp_path / 'sae'}"]
    settings, other = job(tmp_path, "a")[0], job(tmp_path, "b", override, *sae)[0]
    assert (pack_key(settings) == pack_key(other)) is together


def test_a_population_has_results_of_all_and_of_each(alone: Path):
    folder = alone / "population"
    results = json.loads((folder / "results.json").read_text())
    for name in ("fvu", "l0", "ce_recovered_zero", "dead_share"):
        each = [results[f"eval/{number}/{name}"] for number in range(3)]
        assert results[f"eval/{name}"] == pytest.approx(sum(each) / 3)
    assert results["eval/best_fvu"] == results[f"eval/{results['eval/best_member']:.0f}/fvu"]
    assert 0 < results["eval/pw_mcc"] < 1
    assert sorted(path.name for path in (folder / "sae").iterdir()) == ["0", "1", "2"]
    first = load_file(folder / "sae" / "0" / "sae_weights.safetensors")["W_dec"]
    assert not torch.equal(first, load_file(folder / "sae" / "1" / "sae_weights.safetensors")["W_dec"])
    assert (folder / "plots" / "sharing.png").exists()
    last = next(metrics for step, metrics in logged(folder) if step == 4096 and "train/fvu" in metrics)
    assert last["train/fvu"] == pytest.approx(sum(last[f"train/{number}/fvu"] for number in range(3)) / 3)
    assert results["eval/best_member"] == min(range(3), key=lambda number: last[f"train/{number}/fvu"])
    assert 0 < last["train/mutual"] < 1
    assert last["train/reinitialised"] > 0


def test_a_population_resumes_where_it_stopped(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The stop is between two matchings, and between two readings of the rates.
    update, steps = GradientLearner.update, []

    def interrupted(self: GradientLearner, *arguments: object) -> None:
        update(self, *arguments)  # pyright: ignore[reportArgumentType]
        steps.append(arguments[0])
        if len(steps) == 3 * 6:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(GradientLearner, "update", interrupted)
    with pytest.raises(Interrupted):
        run_experiment(*job(tmp_path, "population", *JOBS["population"]))
    assert max(steps) == 5
    monkeypatch.undo()
    run_experiment(*job(tmp_path, "population", *JOBS["population"]))
    assert_same(tmp_path / "population", alone / "population")


@pytest.mark.parametrize("source", ["grouped_features", "sparse_sources"])
def test_features_that_are_known_are_trained_on_and_scored_against(source: str, tmp_path: Path):
    overrides = [
        f"source={source}", "arch=topk", "arch.k=3", "arch.d_sae=32", "population.size=2", "tracking=none",
        "trainer.samples=4096", "trainer.batch_size=256", "trainer.log_every=4",
        "suite.samples=512", "suite.batch_size=256", "suite.latents=512",
    ]  # fmt: skip
    config = composed(*overrides)
    OmegaConf.update(config, "paths.outputs", str(tmp_path))
    results = run_experiment(*accept(config, tmp_path / source, overrides))
    for name in ("mcc", "f1", "uniqueness", "mmcs_truth"):
        assert 0 < results[f"eval/{name}"] <= 1, name
    assert -1 <= results["eval/truth_rank_correlation"] <= 1
    sharing = json.loads((tmp_path / source / "sharing.json").read_text())
    assert [len(each) for each in sharing["nearest_cosine"]] == [32, 32]
    assert results["eval/true_l0"] == (32 if source == "grouped_features" else 3)
    assert "eval/ce_base" not in results
    settings, _ = accept(config, tmp_path / source, overrides)
    assert pack_key(settings)[:2] == (settings.source, 256)


def test_a_truth_may_be_large_and_hierarchical(tmp_path: Path):
    overrides = [
        "source=hierarchical_features", "source.features=300", "source.roots=8", "source.depth=2", "source.d_in=24",
        "arch=topk", "arch.k=3", "arch.d_sae=32", "tracking=none", "trainer.samples=1024", "trainer.batch_size=256",
        "suite.samples=512", "suite.batch_size=256", "suite.latents=512",
    ]  # fmt: skip
    config = composed(*overrides)
    OmegaConf.update(config, "paths.outputs", str(tmp_path))
    assert 0 < run_experiment(*accept(config, tmp_path / "run", overrides))["eval/mcc"] < 1


def test_noise_is_taken_out_of_eeg(tmp_path: Path):
    pytest.importorskip("mne")
    times = np.arange(40 * 64) / 64
    for number in range(4):
        # A window has no whole number of cycles, so that windows differ.
        waves = np.stack([30 * np.sin(2 * np.pi * (4.37 + 0.71 * number) * times + phase) for phase in (0.0, 1.0)])
        write_edf(tmp_path / "eeg" / f"{number}.edf", waves, 64, ["Fp1", "Fp2"])
    overrides = [
        "source=eeg", f"source.path={tmp_path / 'eeg'}", "source.noise_snr_db=0", "source.high=20", "arch=topk",
        "arch.k=4", "arch.d_sae=48", "source.held_out=0.25", "population.size=2", "tracking=none",
        "trainer.samples=12_000", "trainer.batch_size=60", "trainer.lr=3e-3", "suite.samples=40", "suite.batch_size=20",
        "suite.latents=40",
    ]  # fmt: skip
    config = composed(*overrides)
    OmegaConf.update(config, "paths.outputs", str(tmp_path))
    results = run_experiment(*accept(config, tmp_path / "run", overrides))
    # The inputs have as much noise as signal, and the reconstructions have less noise.
    assert results["eval/fvu_of_inputs"] == pytest.approx(1.0, rel=0.1)
    assert results["eval/fvu"] < 0.85


def fitted_job(outputs: Path, *overrides: str) -> tuple[RunSettings, Origin]:
    """Local PCA of three cells, with the evaluation of regions."""
    overrides = (
        "arch=local_pca", "arch.d_sae=6", "arch.rank=1", "eval=[vectors,geometry]", "trainer.samples=1000",
        "trainer.batch_size=100", "tracking=none", *overrides,
    )  # fmt: skip
    config = composed(*overrides)
    OmegaConf.update(config, "paths.outputs", str(outputs))
    return accept(config, outputs / "run", overrides)


@pytest.mark.parametrize(
    ("source", "vectors", "planes"), [("toy_clusters", 500, 2), ("mnist", 100, 1), ("mnist", 2, 0)]
)
def test_regions_are_pictured_as_far_as_there_is_a_plane(source: str, vectors: int, planes: int, tmp_path: Path):
    overrides = f"source={source}", f"suite.samples={vectors}", f"suite.batch_size={vectors}"
    results = run_experiment(*fitted_job(tmp_path, *overrides))
    assert results["eval/diagram_agreement"] == 1.0
    assert sum(results["region_histogram"]["regions"]) == results["eval/regions"] <= 3
    pictures = {picture.name for picture in (tmp_path / "run" / "plots").iterdir()}
    assert "region_sizes.png" in pictures
    # Inputs with two dimensions have pictures of their plane and of the diagram that it is a section of.
    assert ("regions.png" in pictures, "voronoi_lift.png" in pictures) == (planes >= 1, planes == 2)


def test_all_that_is_fitted_at_a_time_must_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Each member has three cells of 8 x 3^2 bytes.
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=500))
    with pytest.raises(ValueError, match=r"9 cells of width 2 take .* lower population.size"):
        run_experiment(*fitted_job(tmp_path / "three", "source=toy_clusters", "population.size=3"))
    run_experiment(*fitted_job(tmp_path / "two", "source=toy_clusters", "population.size=2"))


@pytest.mark.parametrize("experiment", ["mfr/synthetic", "mfr/gpt2", "mfr/smollm2", "mfr/eeg"])
def test_the_control_of_one_autoencoder_is_one(experiment: str):
    own = settings_of(composed(f"experiment={experiment}"))
    assert own.population.size > 1
    control = settings_of(composed(f"experiment={experiment}", "population.size=1", "population.mutual.weight=0"))
    # All other settings are the same, those of resampling included.
    mutual = replace(own.population.mutual, weight=0.0)
    assert control == replace(own, population=replace(own.population, size=1, mutual=mutual))


def test_a_source_without_a_language_model_refuses_one(tmp_path: Path):
    config = composed("source=grouped_features", "model=tiny")
    with pytest.raises(ValueError, match="model is chosen, but this source has nothing to do with a language model"):
        accept(config, tmp_path, [])


def test_an_architecture_that_cannot_be_measured_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings, origin = fitted_job(tmp_path / "run", "source=toy_clusters")
    monkeypatch.setattr(InMemorySource, "first_vectors", lambda self: pytest.fail("a vector was asked for"))
    arch = SquaredSettings(d_sae=4)
    gradients = replace(settings, arch=arch, trainer=AdamSettings(samples=64, batch_size=8))
    with pytest.raises(ValueError, match=r"Squared computes codes in its own way"):
        run_experiment(gradients, origin)


def written_texts(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(40):
        (folder / f"{number}.txt").write_text(" ".join(f"word{number}x{i * i % 97}" for i in range(60)))
    return folder


def change_a_text(text: Path, model: Path) -> None:
    with (text / "7.txt").open("a") as file:
        file.write(" and one word more")


def change_the_weights(text: Path, model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    for name in tensors:
        if "mlp" in name:
            tensors[name] *= 1.5
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "what"), [(change_a_text, "the text of dataset"), (change_the_weights, "the weights of model")]
)
def test_a_run_refuses_to_resume_with_other_data(
    change: Callable[[Path, Path], None], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text, model = written_texts(tmp_path / "text"), tmp_path / "model"
    shutil.copytree(packaged_folder(Package.tiny), model)
    overrides = [
        "arch=topk", "arch.k=4", "trainer.samples=4096", "dataset=text_files", f"dataset.path={text}", "model=custom",
        f"model.path={model}", "model.dtype=float32", "site.layer=1", "suite.samples=128", "suite.batch_size=64",
        "suite.latents=512",
    ]  # fmt: skip
    update = GradientLearner.update

    def interrupted(self: GradientLearner, *arguments: object) -> None:
        update(self, *arguments)  # pyright: ignore[reportArgumentType]
        if arguments[0] == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(GradientLearner, "update", interrupted)
        with pytest.raises(Interrupted):
            run_experiment(*job(tmp_path, "run", *overrides))
    before = (tmp_path / "run" / "checkpoints" / "latest.pt").read_bytes()
    change(text, model)
    with pytest.raises(ValueError, match=rf"(?s)was trained on other data.*{what}: .*put it back"):
        run_experiment(*job(tmp_path, "run", *overrides))
    status = read_status(tmp_path / "run")
    assert status is not None
    assert status.state is RunState.interrupted
    assert (tmp_path / "run" / "checkpoints" / "latest.pt").read_bytes() == before
    # MLflow and the report distinguish a new run on the new data from it.
    with monkeypatch.context() as patched:
        patched.setattr(GradientLearner, "update", interrupted)
        with pytest.raises(Interrupted):
            run_experiment(*job(tmp_path, "anew", *overrides))
    tags = [read_description(tmp_path / name).tags["fsae.data"] for name in ("run", "anew")]
    assert tags[0] != tags[1]


def test_recordings_and_images_have_the_identity_of_their_files(tmp_path: Path):
    waves = np.stack([np.sin(np.arange(64 * 40) * each) for each in (0.3, 0.5)])
    (tmp_path / "eeg").mkdir()
    for number in range(8):
        write_edf(tmp_path / "eeg" / f"{number}.edf", waves * (number + 1), 64, ["Fp1", "Fp2"])
    settings = EEGSettings(path=str(tmp_path / "eeg"))
    before = data_identity(None, None, settings)
    write_edf(tmp_path / "eeg" / "8.edf", waves, 64, ["Fp1", "Fp2"])
    assert data_identity(None, None, settings) != before
    assert before.keys() == {"the files of source"}
    assert data_identity(None, None, EEGSettings()) == {}
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(b"a")
    first = data_identity(None, None, MNISTSettings(path=str(tmp_path / "mnist")))
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(b"ab")
    assert data_identity(None, None, MNISTSettings(path=str(tmp_path / "mnist"))) != first

"""Finished runs that are evaluated again in their own folders."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import fsae
from fsae.configuration.accept import accept
from fsae.configuration.origin import Origin
from fsae.configuration.recorded import recorded_outputs
from fsae.configuration.schema import RunSettings
from fsae.evaluation.geometry import Geometry
from fsae.evaluation.splice import Splice
from fsae.evaluation.subject import Subject
from fsae.evaluation.suite import Findings
from fsae.evaluation.vectors import Vectors
from fsae.export.dictionary_files import load_members
from fsae.outputs.metric_log import read_metrics
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import RunState, mark
from fsae.runs import finished as finished_runs
from fsae.runs.finished import check_finished
from fsae.runs.pack import run_pack
from fsae.sources.synthetic.grouped import GroupedFeaturesSettings
from fsae.sweeps.reevaluation import job_overrides
from tests.composition import composed

SMALL = (
    "tracking=none", "trainer.samples=2048", "trainer.batch_size=256", "suite.samples=512", "suite.batch_size=256",
    "suite.latents=512",
    "trainer.dead_after=1024",
)  # fmt: skip
LANGUAGE = ("debug=tiny", *SMALL, "suite.tokens=128", "source.tokens=1024", "source.shard_tokens=700")
SYNTHETIC = (
    *SMALL,
    "source=grouped_features",
    "source.features=24",
    "source.d_in=12",
    "source.groups=3",
    "source.active=3",
)
RUNS = {
    "gated": (*LANGUAGE, "arch=gated"),
    "jumprelu": (*LANGUAGE, "arch=jumprelu", "trainer.activation_scale=none"),
    "batch_topk": (*LANGUAGE, "arch=batch_topk", "arch.k=8"),
    "local_pca": (*LANGUAGE, "arch=local_pca", "arch.d_sae=32", "arch.rank=3"),
    "massive": (*LANGUAGE, "arch=topk", "arch.k=8", "source.max_norm_multiple=1.1"),
    "population": (*LANGUAGE, "arch=topk", "arch.k=8", "population.size=3"),
    "truth": (*SYNTHETIC, "arch=topk", "arch.k=4", "arch.d_sae=24", "population.size=2"),
}
# An evaluation of a finished run says when it counts.
_KEY = re.compile(rb',\n *"key": "[0-9a-f]{8}"(?=\n}\n?$)')


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def accepted(folder: Path, *overrides: str) -> tuple[RunSettings, Origin]:
    config = composed(*overrides)
    OmegaConf.update(config, "paths.outputs", str(folder.parent))
    return accept(config, folder, overrides)


def train(folder: Path, *overrides: str) -> None:
    (outcome,) = run_pack([accepted(folder, *overrides)])
    assert outcome.error is None, outcome.error


def evaluate(*folders: Path, given: tuple[str, ...] = ()) -> list[BaseException | None]:
    """Evaluate the runs again as one pack; return the error of each."""
    jobs = []
    for folder in folders:
        overrides = [each for each in job_overrides(folder, ["task=reevaluate", *given]) if "hydra." not in each]
        jobs.append(accepted(folder, *overrides))
    return [outcome.error for outcome in run_pack(jobs)]


def results(folder: Path) -> dict[str, Any]:
    return json.loads(RunFolder(folder).results.read_text())


def numbers_of(found: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in found.items() if name.startswith("eval/")}


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a run that an evaluation must not change."""
    grows = {"results.json", "metrics.jsonl", "run.log", "run.lock"}
    # A page of latents names the run's folder, and these runs are copies.
    placed = {"index.html"}
    return {
        str(path.relative_to(folder)): _KEY.sub(b"", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in grows | placed
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of every kind."""
    folder = tmp_path_factory.mktemp("finished")
    for name, overrides in RUNS.items():
        train(folder / name, *overrides)
    return folder


@pytest.fixture
def run(request: pytest.FixtureRequest, finished: Path, tmp_path: Path) -> Path:
    """A copy of one of these runs; of gated, unless the test names another."""
    name = getattr(request, "param", "gated")
    return shutil.copytree(finished / name, tmp_path / name)


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_an_evaluation_of_a_finished_run_has_its_own_numbers_and_leaves_the_rest_alone(run: Path):
    before, files = results(run), contents(run)
    assert evaluate(run) == [None]
    after = results(run)
    assert after.pop("evaluated")
    if run.name == "batch_topk":
        # It is loaded as a jumprelu with the same codes, which are summed in another order.
        assert numbers_of(after) == pytest.approx(numbers_of(before), rel=1e-12)
        return
    assert after == before
    assert contents(run) == files


def test_runs_of_one_stream_are_evaluated_together(finished: Path, tmp_path: Path):
    names = ("gated", "jumprelu", "local_pca")
    folders = [shutil.copytree(finished / name, tmp_path / name) for name in names]
    assert evaluate(*folders) == [None] * 3
    for name, folder in zip(names, folders, strict=True):
        assert numbers_of(results(folder)) == numbers_of(results(finished / name))


@pytest.mark.parametrize("run", ["population"], indirect=True)
def test_new_numbers_join_the_earlier_ones(run: Path):
    before, files = results(run), contents(run)
    lines = list(read_metrics(RunFolder(run).metrics))
    given = ("eval=[vectors,geometry]", "eval.geometry.samples=200", "eval.vectors.samples=300")
    assert evaluate(run, given=given) == [None]
    after = results(run)
    assert after["eval/ce_base"] == before["eval/ce_base"]
    assert after["eval/pw_mcc"] == before["eval/pw_mcc"]
    assert after["eval/fvu"] != before["eval/fvu"]
    assert before.keys() < after.keys()
    assert {name.removeprefix("eval/") for name in after.keys() - before.keys()} >= {"regions", "1/regions"}
    assert after["meanings"]["eval/regions"] == Geometry.meanings["regions"].as_json()
    assert after["meanings"]["eval/pw_mcc"] == before["meanings"]["eval/pw_mcc"]
    written = json.loads((run / "evaluations" / "geometry.json").read_text())
    assert written["settings"] == {"samples": 200, "batch_size": 256}
    assert (run / "plots" / "regions.png").exists()
    left = contents(run)
    assert all(left[name] == content for name, content in files.items() if name != "evaluations/vectors.json"
               and not name.startswith("plots/"))  # fmt: skip
    *earlier, last = read_metrics(RunFolder(run).metrics)
    assert earlier == lines
    assert last.step == lines[-1].step
    assert last.metrics["eval/regions"] == after["eval/regions"]


def test_the_counts_of_samples_are_those_of_the_evaluation_of_vectors(run: Path):
    before = results(run)
    assert evaluate(run, given=("eval=[geometry]", "eval.geometry.samples=100")) == [None]
    after = results(run)
    assert "eval/regions" in after
    assert after["data/held_out_samples"] == before["data/held_out_samples"] == 512
    assert evaluate(run, given=("eval=[vectors]", "eval.vectors.samples=300")) == [None]
    assert results(run)["data/held_out_samples"] == 300
    assert results(run)["data/train_samples_distinct"] == before["data/train_samples_distinct"]


def test_a_trained_autoencoder_exists_even_if_an_evaluation_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failed(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Vectors, "measure", failed)
    (outcome,) = run_pack([accepted(tmp_path / "run", *RUNS["gated"])])
    assert isinstance(outcome.error, ZeroDivisionError)
    assert load_members(tmp_path / "run" / "sae")[0].d_in == 32
    assert not (tmp_path / "run" / "results.json").exists()


def test_an_evaluation_that_is_killed_leaves_the_run_whole_and_can_be_repeated(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    before = results(run)

    class Killed(BaseException):
        """Ends the process at once, as SIGKILL does."""

    def killed(*_: object) -> None:
        raise Killed

    # A kill during a write leaves half a line.
    with RunFolder(run).metrics.open("a") as metrics:
        metrics.write('{"time_ms": 1, "st')
    monkeypatch.setattr(Findings, "results", killed)
    with pytest.raises(Killed):
        evaluate(run, given=("eval=[vectors,geometry]", "eval.geometry.samples=100"))
    monkeypatch.undo()
    assert results(run) == before
    assert evaluate(run, given=("eval=[vectors,geometry]", "eval.geometry.samples=100")) == [None]
    assert {"eval/regions", "eval/ce_base"} <= results(run).keys()
    assert [record.metrics.get("eval/regions") for record in read_metrics(RunFolder(run).metrics)][-1] is not None


def test_what_was_measured_before_a_kill_stays(run: Path, monkeypatch: pytest.MonkeyPatch):
    class Killed(BaseException):
        """Ends the process at once, as SIGKILL does."""

    def killed(*_: object) -> None:
        raise Killed

    before = results(run)
    monkeypatch.setattr(Geometry, "measure", killed)
    with pytest.raises(Killed):
        evaluate(run, given=("eval=[vectors,geometry]", "eval.vectors.samples=300"))
    after = results(run)
    assert after["eval/fvu"] != before["eval/fvu"]
    assert json.loads((run / "evaluations" / "vectors.json").read_text())["numbers"]["fvu"] == after["eval/fvu"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of evaluations that were measured, in their order."""
    names: list[str] = []
    for name, kind in (("vectors", Vectors), ("splice", Splice), ("geometry", Geometry)):

        def counted(self: Any, subject: Subject, name: str = name, measure: Any = kind.measure) -> Any:
            names.append(name)
            return measure(self, subject)

        monkeypatch.setattr(kind, "measure", counted)
    return names


GIVEN = ("eval=[vectors,splice,geometry]", "eval.geometry.samples=100")


def measured_again(run: Path, measured: list[str], *more: str) -> list[str]:
    measured.clear()
    assert evaluate(run, given=(*GIVEN, *more)) == [None]
    return list(measured)


def test_what_was_measured_already_is_left_alone(
    run: Path, measured: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level("INFO")
    # Training has measured it, too, but its files have no key.
    assert measured_again(run, measured) == ["vectors", "splice", "geometry"]
    before, logged = results(run), [record.metrics for record in read_metrics(RunFolder(run).metrics)]
    assert "left alone" not in caplog.text
    assert measured_again(run, measured) == []
    geometry = run / "evaluations" / "geometry.json"
    assert f"geometry is measured already ({geometry}), left alone; delete the file to measure it again" in caplog.text
    after = results(run)
    assert before.pop("evaluated") != after.pop("evaluated")
    assert after == before
    *_, last = read_metrics(RunFolder(run).metrics)
    assert last.metrics.items() <= logged[-1].items()
    assert {"eval/fvu", "eval/ce_base", "eval/regions"} <= last.metrics.keys()

    geometry.unlink()
    assert measured_again(run, measured) == ["geometry"]
    # One that needs another's findings in memory brings it along.
    (run / "evaluations" / "splice.json").unlink()
    assert measured_again(run, measured) == ["vectors", "splice"]
    assert measured_again(run, measured, "eval.geometry.samples=120") == ["geometry"]
    assert measured_again(run, measured, "eval.geometry.samples=120") == []
    monkeypatch.setattr(finished_runs, "versions", lambda folder: {"code": "changed"})
    assert measured_again(run, measured, "eval.geometry.samples=120") == ["vectors", "splice", "geometry"]
    weights = run / "sae" / "sae_weights.safetensors"
    save_file({name: 1.01 * tensor for name, tensor in load_file(weights).items()}, weights)
    assert measured_again(run, measured, "eval.geometry.samples=120") == ["vectors", "splice", "geometry"]
    assert results(run)["eval/fvu"] != after["eval/fvu"]


@pytest.mark.parametrize("run", ["population"], indirect=True)
def test_the_same_command_after_a_kill_measures_the_rest(
    run: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
):
    given = ("eval=[vectors,splice,geometry]", "eval.geometry.samples=100", "eval.vectors.samples=300")

    class Killed(BaseException):
        """Ends the process at once, as SIGKILL does."""

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Geometry, "measure", killed)
        with pytest.raises(Killed):
            evaluate(run, given=given)
    numbers = results(run)
    assert measured == ["vectors", "splice"]
    assert evaluate(run, given=given) == [None]
    assert measured == ["vectors", "splice", "geometry"]
    after = results(run)
    changed = [name for name in numbers if name not in ("evaluated", "meanings") and after[name] != numbers[name]]
    assert changed == []
    assert {"eval/regions", "eval/1/fvu"} <= after.keys()
    *_, last = read_metrics(RunFolder(run).metrics)
    assert last.metrics["eval/1/fvu"] == after["eval/1/fvu"]


def test_an_evaluation_that_fails_leaves_the_run_finished(run: Path, monkeypatch: pytest.MonkeyPatch):
    before, files = results(run), contents(run)
    monkeypatch.setattr(Findings, "results", lambda _: 1 / 0)
    (error,) = evaluate(run)
    assert isinstance(error, ZeroDivisionError)
    assert results(run) == before
    assert contents(run) == files


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: mark(run, RunState.interrupted), "is interrupted, and only a finished one can be evaluated again"),
        (lambda run: (run / "status.json").unlink(), "is not a run's folder: it has no status.json"),
        (lambda run: (run / "status.json").write_text("{"), "is not a run's status"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_evaluated_is_refused(spoil: Any, message: str, run: Path):
    spoil(run)
    before = results(run)
    (error,) = evaluate(run)
    assert message in str(error)
    assert results(run) == before


@pytest.mark.parametrize("content", ["", "a: [", "- 1", "trainer: {}", "paths: {}\nsource: {}\neval: {vectors: {}}"])
def test_damaged_settings_are_refused_in_a_sentence(content: str, run: Path):
    (run / "config.yaml").write_text(content)
    with pytest.raises(
        ValueError, match=r"config\.yaml does not hold a run's settings .*; it may be missing or cut off"
    ):
        recorded_outputs(run)


def test_a_run_of_vectors_in_memory_is_evaluated_in_python(tmp_path: Path):
    fsae.train(torch.randn(600, 8), "topk", d_sae=16, k=2, samples=1000, batch_size=100, folder=tmp_path / "run")
    with pytest.raises(ValueError, match=r"trained by fsae\.train in Python: .* as in fsae\.evaluate\(fsae\.load\('/"):
        check_finished(tmp_path / "run")


@pytest.mark.parametrize("lost", ["sae/sae_weights.safetensors", "sae/cfg.json", "sae"])
def test_a_run_without_its_autoencoder_is_refused(lost: str, run: Path):
    path = run / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=path.name):
        evaluate(run)


def test_a_folder_that_another_process_works_in_is_refused(run: Path):
    with FileLock(run / "run.lock"):
        (error,) = evaluate(run)
    assert f"another process works in {run}; wait for it" in str(error)


def test_one_run_that_fails_does_not_stop_the_others(finished: Path, tmp_path: Path):
    good, bad = (shutil.copytree(finished / name, tmp_path / name) for name in ("gated", "jumprelu"))
    mark(bad, RunState.failed)
    errors = evaluate(bad, good)
    assert "is failed" in str(errors[0])
    assert errors[1] is None
    assert "evaluated" in results(good)
    assert "evaluated" not in results(bad)


def test_a_run_keeps_settings_that_presets_gave_it_at_the_time(run: Path):
    """The values are those of its config.yaml, even if the same overrides have other values today."""
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(config, "eval.vectors.samples", 300)
    OmegaConf.update(config, "dataset.held_out", 0.2)
    OmegaConf.save(config, run / "config.yaml")
    overrides = [each for each in job_overrides(run, ["task=reevaluate"]) if "hydra." not in each]
    settings, _ = accepted(run, *overrides)
    assert settings.dataset is not None
    assert (settings.eval["vectors"].held_out, settings.dataset.held_out) == (300, 0.2)
    resized, _ = accepted(run, *overrides, "suite.samples=400")
    assert resized.eval["vectors"].held_out == 400
    one, _ = accepted(run, *overrides, "eval.vectors.samples=350")
    assert one.eval["vectors"].held_out == 350


def test_a_setting_that_is_not_known_any_more_is_named(run: Path):
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(config, "trainer.magic", 3)
    OmegaConf.save(config, run / "config.yaml")
    with pytest.raises(ValueError, match=r"config\.yaml has other settings than this version of fsae knows .*magic"):
        evaluate(run)


def test_known_features_are_those_of_the_run(finished: Path):
    settings, _ = accepted(finished / "truth", *job_overrides(finished / "truth", ["task=reevaluate"])[:-2])
    assert isinstance(settings.source, GroupedFeaturesSettings)
    assert list(settings.eval) == ["vectors", "truth", "agreement", "latents"]

"""Several runs in one process: each ends as it would alone."""

import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from fsae import run_experiment as run_module
from fsae.configuration.origin import Origin, accept
from fsae.configuration.schema import RunSettings
from fsae.language_models import transformer_lens_model
from fsae.run_experiment import pack_key, run_experiment, run_pack
from fsae.sources import activations
from fsae.tracking.run_log import run_log
from fsae.tracking.spool import read_metrics
from fsae.tracking.status import RunState, read_status
from fsae.training.interruption import Interrupted
from fsae.training.member import Member
from tests.composition import composed
from tests.training.runs import differences

SHORT = (
    "debug=tiny",
    "eval.splice_tokens=128",
    "eval.tokens=512",
    "eval.batch_size=256",
    "trainer.batch_size=256",
    "trainer.log_every=4",
    "source.tokens=2048",
    "source.shard_tokens=1500",
    "source.seed=0",
)
# λ, θ, learning rates, seeds and lengths of their own.
JOBS = {
    "standard": ["arch=standard", "loss.sparsity.weight=0.1", "seed=1", "trainer.tokens=4096"],
    "gated": ["arch=gated", "loss.fisher.weight=0.01", "seed=2", "trainer.tokens=6000"],
    "jumprelu": ["arch=jumprelu", "loss.fisher.weight=1e-3", "seed=2", "trainer.tokens=4096"],
    "topk": ["arch=topk", "arch.k=8", "trainer.resample_every=1024", "trainer.dead_after=512", "trainer.tokens=4096"],
    "batch_topk": ["arch=batch_topk", "arch.k=8", "seed=3", "arch.d_sae=128", "trainer.tokens=2048"],
    "abs_topk": ["arch=abs_topk", "arch.k=4", "trainer.activation_scale=none", "trainer.tokens=4096"],
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def job(outputs: Path, name: str, *overrides: str) -> tuple[RunSettings, Origin]:
    config: DictConfig = composed(*SHORT, *overrides)
    OmegaConf.update(config, "paths.outputs", str(outputs))
    return accept(config, outputs / name, [*SHORT, *overrides])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae" / "sae_weights.safetensors")


def logged(folder: Path) -> list[tuple[int, dict[str, float]]]:
    return [
        (record.step, {name: value for name, value in record.metrics.items() if "per_second" not in name})
        for record in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same(folder: Path, wanted: Path) -> None:
    states = [torch.load(each / "checkpoints" / "latest.pt", weights_only=True)["state"] for each in (folder, wanted)]
    for state in states:
        # How many digits the speed has decides how long the file is.
        state.pop("metrics_position")
    assert differences(*states) == []
    assert differences(weights(folder), weights(wanted)) == []
    assert json.loads((folder / "results.json").read_text()) == json.loads((wanted / "results.json").read_text())
    assert logged(folder) == logged(wanted)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every job by itself; their folders have their names."""
    outputs = tmp_path_factory.mktemp("alone")
    for name, overrides in JOBS.items():
        run_experiment(*job(outputs, name, *overrides))
    return outputs


def test_each_run_of_a_pack_is_what_it_is_alone_whatever_becomes_of_the_others(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # One is finished already, one is busy, one diverges.
    run_experiment(*job(tmp_path, "topk", *JOBS["topk"]))
    busy = FileLock(tmp_path / "busy" / "run.lock")
    (tmp_path / "busy").mkdir()
    busy.acquire()
    opened = []

    def counted(settings: object) -> object:
        opened.append(settings)
        return transformer_lens_model.open_language_model(settings)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(activations, "open_language_model", counted)
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


@pytest.mark.parametrize("measuring", ["evaluate_vectors", "evaluate_splice"])
def test_a_signal_in_the_evaluation_stops_it_and_nothing_is_trained_twice(
    measuring: str, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    measure = getattr(run_module, measuring)

    def signalled(*arguments: object) -> object:
        signal.raise_signal(signal.SIGUSR2)
        return measure(*arguments)

    monkeypatch.setattr(run_module, measuring, signalled)
    with pytest.raises(Interrupted):
        run_experiment(*job(tmp_path, "topk", *JOBS["topk"]))
    status = read_status(tmp_path / "topk")
    assert status is not None
    assert status.state is RunState.interrupted
    assert not (tmp_path / "topk" / "results.json").exists()

    monkeypatch.undo()
    monkeypatch.setattr(Member, "backward", None)
    run_experiment(*job(tmp_path, "topk", *JOBS["topk"]))
    assert_same(tmp_path / "topk", alone / "topk")


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
    jobs = [
        job(tmp_path, name, *JOBS[name], "dataset=text_files", f"dataset.path={tmp_path / 'nothing' / '*.txt'}")
        for name in ("standard", "gated")
    ]
    with run_log(tmp_path / "standard"), run_log(tmp_path / "gated"):
        outcomes = run_pack(jobs)
    for name, outcome in zip(("standard", "gated"), outcomes, strict=True):
        status = read_status(tmp_path / name)
        assert status is not None
        assert status.state is RunState.failed
        assert status.failure is not None
        assert "nothing" in status.failure.message
        assert "nothing" in (tmp_path / name / "run.log").read_text()
        assert isinstance(outcome.error, ValueError)


def test_existing_autoencoders_are_evaluated_together(alone: Path, tmp_path: Path):
    names = ("standard", "batch_topk")
    outcomes = run_pack([job(tmp_path, name, "task=eval", f"sae.path={alone / name / 'sae'}") for name in names])
    for name, outcome in zip(names, outcomes, strict=True):
        assert outcome.error is None
        assert outcome.results is not None
        wanted = json.loads((alone / name / "results.json").read_text())
        assert outcome.results["eval/fvu"] == pytest.approx(wanted["eval/fvu"], rel=1e-5)
        assert outcome.results["eval/ce_spliced"] == pytest.approx(wanted["eval/ce_spliced"], rel=1e-5)


@pytest.mark.parametrize(
    ("override", "together"),
    [
        ("loss.sparsity.weight=0.7", True),
        ("arch.d_sae=99", True),
        ("seed=5", True),
        ("trainer.tokens=2048", True),
        ("trainer.activation_scale=none", True),
        ("source.cache=none", True),
        ("source.seed=5", False),
        ("source.tokens=1024", False),
        ("trainer.batch_size=128", False),
        ("site.layer=2", False),
        ("eval.tokens=300", False),
        ("task=eval", False),
    ],
)
def test_what_fits_into_one_pack(override: str, together: bool, tmp_path: Path):
    sae = [f"sae.path={tmp_path}"] if override == "task=eval" else []
    settings, other = job(tmp_path, "a")[0], job(tmp_path, "b", override, *sae)[0]
    assert (pack_key(settings) == pack_key(other)) is together

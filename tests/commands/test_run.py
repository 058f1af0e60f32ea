"""Whole runs by the command line: refusals, and resuming after a kill."""

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fsae.commands import run as run_module
from fsae.configuration import accept as origin
from fsae.outputs.metric_log import read_metrics
from fsae.training.checkpoints import Checkpoints
from fsae.training.interruption import Interrupted
from tests.composition import run_folder
from tests.processes import environment, finished, start, wait_until
from tests.training.runs import differences

TINY = ("debug=tiny", "eval.splice.tokens=128", "suite.latents=1024")


@dataclass
class Ended:
    """The end of a command that ran in this process."""

    exit_status: int
    output: str


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator:
    """The command line in this process, for commands that end before anything is loaded."""
    monkeypatch.setenv("FSAE_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def ended(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["run", *arguments])
        # main sets it.
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        status = 0
        try:
            run_module.main()
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
        return Ended(status, "".join(capfd.readouterr()))

    yield ended
    root.handlers[:], root.level = handlers, level


def only(paths: Iterator[Path]) -> Path:
    (path,) = paths
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["arch=topj"], "arch=topj: there is no such choice; did you mean topk?"),
        (["site.layr=1"], "site.layr: there is no such setting; did you mean site.layer?"),
        (["seed=abc"], "seed: 'abc' is not a whole number"),
        (["trainer.lr=[1"], "trainer.lr=[1: not an override Hydra can read"),
        (["--config-dir=/no/such/folder"], "Additional config directory '/no/such/folder' not found"),
    ],
)
def test_a_failed_composition_is_reported_once_and_recorded(
    arguments: list[str], message: str, command, tmp_path: Path
):
    ended = command(*arguments)
    assert ended.exit_status == 1
    assert ended.output.startswith(f"fsae: {message}")
    assert ended.output.count(message) == 1
    assert "Traceback" not in ended.output
    status = json.loads((tmp_path / "outputs" / "status.json").read_text())
    assert status["state"] == "refused"
    assert status["failure"]["message"].startswith(message)
    assert not (tmp_path / "outputs" / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.lr=-1"], "trainer.lr is -1; it must be above 0"),
        (["+site.foo=1"], "site.foo: there is no such setting; site has: head, layer, name"),
        (["model=tiny", "site.layer=4"], "layer 4 is named, but model tiny has 4 layers, 0 to 3"),
        (["arch=topk", "arch.d_sae=32"], "arch.k is 64, more than the 32 latents of the autoencoder"),
        (["loss=jumprelu", "arch=standard"], "loss.sparsity (StepL0) needs a forward record with active"),
        (["task=eval"], "task=eval evaluates an existing autoencoder: name its folder with sae.path=FOLDER"),
        (["task=reevaluate"], "task=reevaluate evaluates a finished run again; use python -m fsae.evaluate RUN"),
        (["model=custom"], "model.path is not set; add model.path=FOLDER_OR_HUB_NAME"),
        (["dataset=text_files"], "dataset.path is not set; dataset.format=text needs a folder or a glob"),
        (["tracking.uri=file:///some/folder"], "tracking.uri"),
        (["task=eval", "sae.path=/no/sae"], "/no/sae is not a folder; name one that holds cfg.json"),
        (["dataset=text_files", "dataset.path=/no/text"], "dataset.path: there is no file or folder /no/text"),
        (
            ["dataset=json_files", "dataset.path=/no/*.json"],
            "dataset.path: /no/*.json matches no json file",
        ),
    ],
)
def test_a_refusal_is_reported_once_and_recorded_in_the_outputs_folder(
    arguments: list[str], message: str, command, tmp_path: Path
):
    ended = command(*arguments)
    assert ended.exit_status == 1
    assert ended.output.count(message) == 1
    assert "Traceback" not in ended.output
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["status.json"]
    status = json.loads((tmp_path / "outputs" / "status.json").read_text())
    assert status["state"] == "refused"
    assert status["failure"]["kind"] == "ValueError"
    assert status["failure"]["message"].startswith(message)


def test_a_sweep_without_a_runnable_job_is_reported_once_and_recorded(command, tmp_path: Path):
    ended = command("-m", "model=tiny", "site.layer=4", "seed=1,2", "arch=gated,topk")
    assert ended.exit_status == 1
    assert ended.output == (
        "fsae: layer 4 is named, but model tiny has 4 layers, 0 to 3; choose one of them by site.layer, or several by "
        "layout.layers\n"
    )
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["arch=gated,topj"], "arch=topj: there is no such choice; did you mean topk?"),
        (["seed=1,x"], "seed: 'x' is not a whole number; write digits"),
        (["paths.outputs=one,two"], "paths.outputs has several values, but a sweep has one folder"),
        (["task=train,reevaluate"], "task=reevaluate evaluates a finished run again; use python -m fsae.evaluate RUN"),
    ],
)
def test_a_sweep_with_an_unknown_choice_is_reported_once_and_recorded(
    arguments: list[str], message: str, command, tmp_path: Path
):
    ended = command("-m", "model=tiny", "site.layer=1", *arguments)
    assert (ended.exit_status, ended.output.count("fsae: ")) == (1, 1)
    assert ended.output.startswith(f"fsae: {message}")
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["status.json"]


def test_a_second_sweep_in_a_folder_is_refused(command, tmp_path: Path):
    sweep = tmp_path / "outputs" / "sweeps" / "first" / "sweep.json"
    sweep.parent.mkdir(parents=True)
    sweep.write_text("{}")
    ended = command("-m", *TINY_FOLDER, "seed=1,2", f"hydra.sweep.dir={sweep.parent}")
    assert ended.exit_status == 1
    assert ended.output.startswith(f"fsae: {sweep.parent} already holds a sweep: finish it with")
    assert ended.output.count("\n") == 1
    assert [path.name for path in sweep.parent.iterdir()] == ["sweep.json"]
    assert sweep.read_text() == "{}"


def test_a_sweep_with_other_job_folders_is_refused(command, tmp_path: Path):
    folder = tmp_path / "outputs" / "sweeps" / "named"
    given = ("hydra.sweep.subdir=${hydra.job.override_dirname}", f"hydra.sweep.dir={folder}")
    ended = command("-m", *TINY_FOLDER, "seed=1,2", *given)
    assert ended.exit_status == 1
    assert ended.output == "fsae: hydra.sweep.subdir cannot be changed: a sweep finds its jobs by their numbers\n"
    assert not folder.exists()


LONG_NAME = "n" * 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paths.outputs="], "paths.outputs is ''"),
        (["paths.outputs='  '"], "paths.outputs is '  '"),
        (["paths.outputs='~/x'"], "paths.outputs is '~/x': only the shell expands ~"),
        (["paths.outputs='a\nb'"], "paths.outputs is 'a\\nb': a folder's name may contain no line break"),
        (["paths.runs="], "paths.runs is ''"),
        (["paths.runs=../x"], "paths.runs is '../x', which is not below the outputs folder"),
        (["paths.activations="], "paths.activations is ''"),
        (["hydra.run.dir="], "hydra.run.dir is ''"),
        (["hydra.run.dir=../x"], "hydra.run.dir is '../x', which is not below the outputs folder"),
        (["hydra.run.dir=${paths.outputs}/../x"], "which is not below the outputs folder"),
        (["hydra.run.dir=${paths.outputs}"], "which is not below the outputs folder"),
        (["-m", "seed=1,2", "hydra.sweep.dir="], "hydra.sweep.dir is ''"),
        (["-m", "seed=1,2", "hydra.output_subdir=../hy"], "hydra.output_subdir is '../hy', but a run writes"),
        (["hydra.output_subdir=../../../hy"], "hydra.output_subdir is '../../../hy', but a run writes"),
        (["hydra/job_logging=default", "hydra.job.name=../../jn"], "hydra.job.name is '../../jn'; it names a file"),
        (
            ["hydra/job_logging=default", "hydra.job_logging.handlers.file.filename=../x.log"],
            "hydra.job_logging.handlers.file.filename is '../x.log', which is not below the outputs folder",
        ),
        (["-m", "seed=1,2", "hydra.sweep.dir=x"], "hydra.sweep.dir is 'x', which is not below the outputs folder"),
        (["name=../../x"], "name is '../../x'; it names one folder"),
        (["name=/abs"], "name is '/abs'; it names one folder"),
        (["name='a\\b'"], "name is 'a\\\\b'; it names one folder"),
        (["name='a\nb'"], "name is 'a\\nb'; it names one folder"),
        (["name='..'"], "name is '..'; it has to have a letter or a digit"),
        (["name=' . '"], "name is ' . '; it has to have a letter or a digit"),
        (["name=''"], "name is ''; it has to have a letter or a digit"),
        ([f"name={LONG_NAME}"], "name is 300 bytes long"),
    ],
)
def test_a_folder_outside_the_outputs_is_refused_before_anything_is_created(
    arguments: list[str], message: str, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    working = tmp_path / "a" / "b"
    working.mkdir(parents=True)
    monkeypatch.chdir(working)
    ended = command(*arguments, *TINY_FOLDER)
    assert ended.exit_status == 1
    assert ended.output.startswith("fsae: ")
    assert message in ended.output
    assert ended.output.count("\n") == 1
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert made <= {"a", "a/b", "outputs", "outputs/status.json"}


def test_an_empty_outputs_folder_in_the_environment_is_refused(
    command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSAE_OUTPUTS", "")
    for arguments in (TINY_FOLDER, ("arch=topj",), ("-m", *TINY_FOLDER, "seed=1,2")):
        assert command(*arguments).exit_status == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_composition_is_recorded_in_the_named_outputs_folder(command, tmp_path: Path):
    command("arch=topj", f"paths.outputs={tmp_path / 'other'}")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_refusal_does_not_change_earlier_results(command, tmp_path: Path):
    folder = folder_of("model=tiny", "site.layer=4")
    (folder / "results.json").write_text("{}")
    (folder / "status.json").write_text(json.dumps({"state": "finished"}))
    command("model=tiny", "site.layer=4")
    assert json.loads((folder / "status.json").read_text()) == {"state": "finished"}
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "status.json"]


TINY_FOLDER = ("model=tiny", "site.layer=1", "tracking=none", "suite.latents=512")


def folder_of(*arguments: str) -> Path:
    """The folder of these settings, created here."""
    folder = run_folder(*arguments)
    folder.mkdir(parents=True)
    return folder


def failure_in(folder: Path, state: str = "failed") -> str:
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == state
    return status["failure"]["message"]


def test_a_damaged_checkpoint_is_reported_and_not_changed(command):
    folder = folder_of(*TINY_FOLDER)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "latest.pt").write_bytes(b"PK half of it")
    ended = command(*TINY_FOLDER)
    assert ended.exit_status == 1
    assert ended.output.count("latest.pt is damaged") == 1
    assert "delete it to start this run from the beginning" in failure_in(folder, "refused")
    assert (folder / "checkpoints" / "latest.pt").read_bytes() == b"PK half of it"


def test_the_error_for_a_foreign_checkpoint_lists_the_differing_keys(command):
    folder = folder_of(*TINY_FOLDER)
    Checkpoints(folder / "checkpoints", {"seed": "5", "arch.k": "3"}, {}).save({})
    ended = command(*TINY_FOLDER)
    assert ended.exit_status == 1
    assert "\n  seed: 5 in the checkpoint, 0 now\n" in ended.output
    assert "\n  arch.k: 3 in the checkpoint, (absent) now\n" in failure_in(folder, "refused")


def test_the_error_for_a_full_disk_names_the_folder(command):
    folder = folder_of(*TINY_FOLDER)
    # This device refuses every write.
    (folder / "config.yaml.partial").symlink_to("/dev/full")
    ended = command(*TINY_FOLDER)
    assert ended.exit_status == 1
    assert ended.output.count(f"no space left for {folder}; free some") == 1
    assert "Traceback" not in ended.output
    assert failure_in(folder).startswith("no space left for")


def test_an_impossible_outputs_folder_is_reported_without_a_traceback(command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSAE_OUTPUTS", "/dev/null/outputs")
    ended = command("model=tiny", "site.layer=1")
    assert ended.exit_status == 1
    assert "/dev/null/outputs" in ended.output
    assert "Traceback" not in ended.output


def test_an_unexpected_error_shows_its_traceback(command, monkeypatch: pytest.MonkeyPatch):
    def broken(settings: object) -> None:
        raise TypeError("unexpected")

    monkeypatch.setattr(origin, "check", broken)
    ended = command("model=tiny", "site.layer=1")
    assert ended.exit_status == 1
    assert "unexpected" in ended.output
    assert "Traceback" in ended.output
    assert "in broken" in ended.output


@pytest.mark.parametrize(("name", "exit_status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_a_whole_sweep(
    name: str, exit_status: int, command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def interrupted(*given: object) -> None:
        raise Interrupted(name)

    monkeypatch.setattr(run_module, "accept", interrupted)
    ended = command("-m", "model=tiny", "seed=1,2")
    assert ended.exit_status == exit_status
    assert ended.output.count(f"interrupted by {name}; fsae.resume starts it again") == 1
    assert [path.name for path in (tmp_path / "outputs" / "sweeps").glob("*/*/*") if path.is_dir()] == ["0"]


def test_a_users_own_yaml_files_are_used(command, tmp_path: Path):
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch" / "wide.yaml").write_text("defaults: [/schema/arch@_here_: topk, _self_]\nd_sae: 999\nk: 7\n")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [override /arch: wide, override /loss: topk]\n"
        "seed: 11\nname: mine\nloss: {fisher: {weight: 0.5}}\n"
    )
    output = command(f"--config-dir={tmp_path}", "--cfg=job", "experiment=mine").output
    assert "\nseed: 11\n" in output
    assert "name: mine\n" in output
    assert "  d_sae: 999\n" in output
    assert re.search(r"fisher:\n(    .*\n)*    weight: 0\.5\n", output)
    assert "\nseed: 12\n" in command(f"--config-dir={tmp_path}", "--cfg=job", "experiment=mine", "seed=12").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["arch=topj"], "there is no such choice"),
        (["model=gemma2b", "arch=standard", "loss=jumprelu"], "needs a forward record"),
        (["--help"], "== Configuration groups =="),
    ],
)
def test_help_and_refusals_are_fast_and_import_nothing_slow(arguments: list[str], message: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fsae.run", *arguments],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == (0 if "--help" in arguments else 1)
    assert message in done.stdout + done.stderr
    modules = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line]
    # Torch is three quarters of them.
    assert len(modules) < 2500
    imported = {module.partition(".")[0] for module in modules}
    assert "torch" in imported
    assert not imported & {"transformers", "transformer_lens", "datasets", "mlflow", "matplotlib"}


def stuck_importing(library: str, folder: Path, outputs: Path) -> subprocess.Popen[str]:
    """Start a run and return it in the middle of importing a library, which never ends."""
    begun = folder / "begun"
    content = f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\nwhile True:\n    time.sleep(1)\n"
    (folder / f"{library}.py").write_text(content)
    process = subprocess.Popen(
        [sys.executable, "-m", "fsae.run", *TINY],
        env=environment(outputs, PYTHONPATH=str(folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(begun.exists, process)
    return process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_during_imports_is_reported_in_one_line(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    process = stuck_importing("torch", tmp_path_factory.mktemp("library"), tmp_path / "outputs")
    process.send_signal(signal.Signals[name])
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (128 + signal.Signals[name], f"fsae: interrupted by {name}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_during_the_opening_of_a_model_interrupts_the_run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    process = stuck_importing("transformers", tmp_path_factory.mktemp("library"), tmp_path)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=60)
    assert "opening the language model" in output
    assert process.returncode == 129, output
    assert output.splitlines()[-1].endswith("WARNING interrupted by SIGHUP; the same command starts it again")
    assert "Traceback" not in output
    (folder,) = (tmp_path / "runs").iterdir()
    assert failure_in(folder, "interrupted") == "interrupted by SIGHUP"


LONG = (
    *TINY,
    "trainer.samples=32_768",
    "trainer.batch_size=256",
    "trainer.log_every=4",
    "trainer.checkpoint_seconds=0.1",
    "trainer.resample_every=4096",
    "trainer.dead_after=2048",
    "loss.penalty.weight=1e-4",
)


def lines(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def written_at(folder: Path) -> int | None:
    """Return when the checkpoint was saved; None if there is none."""
    checkpoint = folder / "checkpoints" / "latest.pt"
    return checkpoint.stat().st_mtime_ns if checkpoint.exists() else None


def step_in(folder: Path) -> int:
    return torch.load(folder / "checkpoints" / "latest.pt", weights_only=True)["state"]["step"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not interrupted."""
    outputs = tmp_path_factory.mktemp("uninterrupted")
    done = finished(*LONG, outputs=outputs)
    assert done.returncode == 0, done.stdout
    folder = only((outputs / "runs").iterdir())
    assert str(folder) in done.stdout
    assert re.search(r"^fvu +\d", done.stdout, re.MULTILINE)
    return folder


def test_a_run_killed_several_times_ends_with_the_same_numbers(uninterrupted: Path, tmp_path: Path):
    moment = random.Random(os.urandom(8))
    # The same settings have the same name in another outputs folder.
    folder = tmp_path / "runs" / uninterrupted.name

    # Before the first checkpoint.
    process = start(*LONG, outputs=tmp_path)
    wait_until((folder / "status.json").exists, process)
    process.kill()
    process.communicate()

    # At any moment in the first half of the training.
    process = start(*LONG, outputs=tmp_path)
    wanted = moment.randint(2, 12)
    wait_until(lambda: lines(folder) >= wanted, process)
    process.kill()
    process.communicate()
    assert json.loads((folder / "status.json").read_text())["state"] == "running"
    assert not (folder / "results.json").exists()

    # Stopped by a signal, after a second process was refused.
    before_it = written_at(folder)
    process = start(*LONG, outputs=tmp_path)
    wait_until(lambda: written_at(folder) != before_it, process)
    process.send_signal(signal.SIGSTOP)
    before = {name: (folder / name).read_bytes() for name in ("status.json", "metrics.jsonl", "tracking.json")}
    second = finished(*LONG, outputs=tmp_path)
    assert second.returncode == 1
    assert f"another process is running in {folder}" in second.stdout
    assert "Traceback" not in second.stdout
    assert {name: (folder / name).read_bytes() for name in before} == before
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 143, output
    assert "interrupted by SIGTERM; the same command resumes from the saved state" in output
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert status["failure"] == {"kind": "Interrupted", "message": "interrupted by SIGTERM"}
    stopped_at = step_in(folder)
    assert 0 < stopped_at < 128

    done = finished(*LONG, outputs=tmp_path)
    assert done.returncode == 0, done.stdout
    assert f"resuming at step {stopped_at} of 128" in done.stdout
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert_same_run(folder, uninterrupted)


def assert_same_run(folder: Path, wanted: Path) -> None:
    states = [torch.load(each / "checkpoints" / "latest.pt", weights_only=True) for each in (folder, wanted)]
    for state in states:
        # The file's length depends on the number of digits of the speed.
        state["state"].pop("metrics_position")
        assert state["state"]["step"] == 128
    assert differences(*states) == []
    for name in ("sae_weights.safetensors", "sparsity.safetensors"):
        assert differences(load_file(folder / "sae" / name), load_file(wanted / "sae" / name)) == []
    assert json.loads((folder / "results.json").read_text()) == json.loads((wanted / "results.json").read_text())
    logged = [
        [
            (record.step, {name: value for name, value in record.metrics.items() if "per_second" not in name})
            for record in read_metrics(each / "metrics.jsonl")
        ]
        for each in (folder, wanted)
    ]
    assert logged[0] == logged[1]
    training = [step for step, values in logged[0] if "train/loss" in values]
    assert training == [256 * step for step in range(4, 129, 4)]
    (evaluation,) = [(step, values) for step, values in logged[0] if "eval/fvu" in values]
    assert evaluation[0] == 32_768


def test_a_runs_folder_holds_everything(uninterrupted: Path):
    names = {str(path.relative_to(uninterrupted)) for path in uninterrupted.rglob("*") if path.is_file()}
    pages = {name for name in names if name.startswith("latents/pages-")}
    assert pages
    assert names - pages == {
        "config.yaml",
        "overrides.yaml",
        "status.json",
        "metrics.jsonl",
        "results.json",
        "tracking.json",
        "run.log",
        "run.lock",
        "checkpoints/latest.pt",
        "sae/cfg.json",
        "sae/sae_weights.safetensors",
        "sae/sparsity.safetensors",
        "plots/training.png",
        "plots/firing.png",
        "evaluations/vectors.json",
        "evaluations/splice.json",
        "evaluations/latents.json",
        *(f"latents/{name}" for name in ("index.html", "latents.parquet", "hits.parquet", "meta.json")),
        *(f"latents/{name}" for name in ("tokens.npy", "strings.json")),
    }
    from omegaconf import OmegaConf

    config = OmegaConf.load(uninterrupted / "config.yaml")
    assert config.trainer.log_every == 4
    assert config.paths.runs == str(uninterrupted.parent)
    assert list(OmegaConf.load(uninterrupted / "overrides.yaml")) == list(LONG)


def test_the_exported_autoencoder_evaluates_to_the_runs_results(uninterrupted: Path, tmp_path: Path):
    sae = tmp_path / "sae"
    shutil.copytree(uninterrupted / "sae", sae)
    done = finished(*TINY, "task=eval", f"sae.path={sae}", outputs=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    folder = only((tmp_path / "runs").iterdir())
    assert folder.name.startswith("eval-tiny-resid_mid.1-")
    results = json.loads((folder / "results.json").read_text())
    wanted = json.loads((uninterrupted / "results.json").read_text())
    for not_numbers in ("density_histogram", "meanings"):
        assert results.pop(not_numbers) == wanted.pop(not_numbers)
    # An evaluation does not train, so it has no counts of training samples.
    of_training = {name for name in wanted if name.startswith("data/train") or name == "data/text_rounds"}
    assert wanted.keys() - results.keys() == of_training
    (control,), (wanted_control,) = results.pop("latents_control"), wanted.pop("latents_control")
    assert control == pytest.approx(wanted_control, rel=1e-5)
    assert results == pytest.approx({name: wanted[name] for name in results}, rel=1e-5)
    assert not (folder / "checkpoints").exists()


def test_a_sweeps_jobs_have_flat_folders_and_one_failure_stops_no_other(tmp_path: Path):
    short = ("eval=[vectors]", "trainer.samples=1024", "source.shard_tokens=1024")
    # 40 latents are too few for topk's 64.
    done = finished("-m", "debug=tiny", *short, "arch=topk,standard", "arch.d_sae=40", "seed=1,2", outputs=tmp_path)
    assert done.returncode == 1
    sweep = only((tmp_path / "sweeps").glob("*/*"))
    states = {
        path.name: json.loads((path / "status.json").read_text())["state"]
        for path in sweep.iterdir()
        if path.name.isdecimal()
    }
    assert states == {"0": "refused", "1": "refused", "2": "finished", "3": "finished"}
    for job in ("0", "1"):
        assert "arch.k is 64, more than the 40 latents" in (sweep / job / "run.log").read_text()
    # Each failure in its job's log and in the summary.
    assert done.stdout.count("arch.k is 64, more than the 40 latents") == 4
    assert "Traceback" not in done.stdout
    results = [json.loads((sweep / job / "results.json").read_text()) for job in ("2", "3")]
    assert results[0] != results[1]
    # A refusal that belongs to a job is not recorded in the outputs folder.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["activations", "sweeps"]

"""`python -m fsae.evaluate`: finished runs and sweeps, evaluated again through any launcher."""

import json
import os
import re
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from fsae.commands.evaluate import main
from fsae.configuration.overrides import quoted
from fsae.outputs.status import RunState, mark
from tests.processes import begun, ended, wait_until

TINY = (
    "source=sparse_sources", "arch=topk", "arch.k=3", "arch.d_sae=16", "trainer.samples=1024",
    "trainer.batch_size=128", "trainer.log_every=4", "suite.samples=512", "suite.batch_size=256", "suite.latents=512",
    "source.seed=0",
)  # fmt: skip
SWEEP = Path("sweeps/here")
# Folders of YAML files, each with an evaluation.
OWN = ("first", "second")


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def forget(sweep: Path) -> None:
    """Let every evaluation of a sweep's jobs be measured again."""
    for file in sweep.glob("*/evaluations/*.json"):
        file.unlink()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outputs folder with a finished sweep of three jobs, all of them in MLflow."""
    folder = tmp_path_factory.mktemp("outputs")
    for own in OWN:
        (folder / own / "eval").mkdir(parents=True)
        (folder / own / "eval" / f"of_{own}.yaml").write_text(
            f"# @package eval.of_{own}\ndefaults: [/schema/eval@_here_: geometry, _self_]\n"
            "samples: 100\nbatch_size: 100\n"
        )
    sweep = ended(begun("fsae.run", *TINY, "-m", "seed=0,1,2", f"hydra.sweep.dir={folder / SWEEP}",
                        "launcher=packed", *(f"--config-dir={own}" for own in OWN), outputs=folder))  # fmt: skip
    assert sweep.returncode == 0, sweep.stdout
    return folder


@pytest.mark.parametrize("launcher", ["local", "joblib", "packed"])
def test_a_sweep_is_evaluated_through_any_launcher(launcher: str, outputs: Path):
    sweep = outputs / SWEEP
    forget(sweep)
    before = [results(sweep / str(job)) for job in range(3)]
    given = ("eval=[vectors,geometry]", "eval.geometry.samples=100", f"launcher={launcher}")
    done = ended(begun("fsae.evaluate", str(sweep), *given, outputs=outputs))
    assert done.returncode == 0, done.stdout
    assert ("3 jobs in packs of 3" in done.stdout) == (launcher == "packed")
    for job in range(3):
        after = results(sweep / str(job))
        assert after["evaluated"] > before[job].get("evaluated", "")
        assert {name: after[name] for name in before[job] if name.startswith("eval/")} == {
            name: value for name, value in before[job].items() if name.startswith("eval/")
        }
        assert "eval/regions" in after
        assert json.loads((sweep / str(job) / "status.json").read_text())["state"] == "finished"
        assert f"\n{sweep / str(job)}: fvu {after['eval/fvu']:.4g}, l0 " in done.stdout
    assert done.stdout.rstrip().endswith(f"-m fsae.report {sweep}")
    assert not (outputs / "runs").exists()


def test_new_numbers_reach_the_run_in_mlflow(outputs: Path):
    run = outputs / SWEEP / "0"
    for samples in (300, 400):
        done = ended(begun("fsae.evaluate", str(run), "eval=[vectors,truth]", f"eval.truth.samples={samples}",
                           f"eval.vectors.samples={samples}", outputs=outputs))  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert "in MLflow" in done.stdout
        for name in ("fvu", "mcc"):
            meaning = results(run)["meanings"][f"eval/{name}"]["text"]
            assert re.search(rf"^{name} +{results(run)[f'eval/{name}']:.4g}  {meaning}", done.stdout, re.MULTILINE)
        assert f"run folder:  {run}" in done.stdout
    uid = json.loads((run / "tracking.json").read_text())["uid"]
    with sqlite3.connect(outputs / "mlflow.db") as database:
        (run_id,) = database.execute("select run_uuid from tags where key = 'fsae.uid' and value = ?", [uid]).fetchone()
        latest = dict(database.execute("select key, value from latest_metrics where run_uuid = ?", [run_id]))
        rows = database.execute(
            "select value from metrics where run_uuid = ? and key = 'eval/fvu'", [run_id]
        ).fetchall()
    wanted = {name: value for name, value in results(run).items() if name.startswith("eval/") and value is not None}
    assert {name: latest[name] for name in wanted} == pytest.approx(wanted)
    # Each evaluation's value is there once: the first one's, and those of 300 and of 400 samples.
    assert len(rows) == len(set(rows)) == 3
    (artifacts,) = outputs.rglob(f"{run_id}/artifacts/evaluations")
    assert json.loads((artifacts / "truth.json").read_text())["settings"] == {"samples": 400}


def test_a_launcher_that_this_machine_lacks_is_refused_in_a_sentence(outputs: Path):
    done = ended(begun("fsae.evaluate", str(outputs / SWEEP), "launcher=slurm", outputs=outputs, PATH="/no/such"))
    assert done.returncode == 1
    assert done.stdout.startswith("fsae: launcher=slurm: there is no sbatch on PATH")
    assert "Traceback" not in done.stdout


def evaluate_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """Return the arguments of `fsae.run` that the command ends in."""
    command = list[str]()
    monkeypatch.setattr("fsae.commands.run.main", lambda: command.extend(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("FSAE_OUTPUTS", "")
    main(arguments)
    return command


def test_a_job_by_its_own_folder_finds_every_config_dir_of_its_sweep(outputs: Path):
    run = outputs / SWEEP / "2"
    for own in OWN:
        done = ended(begun("fsae.evaluate", str(run), f"eval=[of_{own}]", outputs=outputs))
        assert done.returncode == 0, done.stdout
        assert (run / "evaluations" / f"of_{own}.json").exists()


def test_a_config_dir_of_the_sweep_that_no_longer_exists_is_named_and_left_out(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (outputs / "first").rename(outputs / "moved")
    try:
        command = evaluate_command(monkeypatch, str(outputs / SWEEP / "0"), "--config-dir=one", "--config-dir=two")
    finally:
        (outputs / "moved").rename(outputs / "first")
    wanted = [Path("one").absolute(), Path("two").absolute(), outputs / "second"]
    assert [each for each in command if "config-dir" in each] == [f"--config-dir={each}" for each in wanted]
    assert f"--config-dir={outputs / 'first'}, and there is no such folder now" in capsys.readouterr().err


def test_a_run_that_is_named_twice_is_evaluated_once(outputs: Path, monkeypatch: pytest.MonkeyPatch):
    run = outputs / SWEEP / "0"
    command = evaluate_command(monkeypatch, str(run), str(run / ".." / "0"), str(outputs / SWEEP))
    (folders,) = [each for each in command if each.startswith("hydra.sweeper.folders=")]
    assert folders == f"hydra.sweeper.folders=[{','.join(quoted(outputs / SWEEP / str(job)) for job in range(3))}]"


def test_a_killed_evaluation_is_started_again(outputs: Path):
    run = outputs / SWEEP / "1"
    forget(outputs / SWEEP)
    before = results(run)
    given = ("fsae.evaluate", str(run), "eval=[vectors,geometry]", "eval.geometry.samples=4000")
    evaluations = (run / "run.log").read_text().count("evaluating")
    process = begun(*given, outputs=outputs)
    wait_until(lambda: (run / "run.log").read_text().count("evaluating") > evaluations, process)
    os.kill(process.pid, signal.SIGKILL)
    ended(process)
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert set(before) <= set(results(run))
    again = ended(begun(*given, outputs=outputs))
    assert again.returncode == 0, again.stdout
    assert "eval/regions" in results(run)


@pytest.mark.parametrize("launcher", ["local", "packed", "joblib"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_evaluation_of_a_sweep(launcher: str, number: signal.Signals, outputs: Path):
    sweep = outputs / SWEEP
    forget(sweep)
    logs = [sweep / str(job) / "run.log" for job in range(3)]
    lengths = [len(log.read_text()) for log in logs]
    before = [results(sweep / str(job)) for job in range(3)]
    files = [sweep / str(job) / "evaluations" / "geometry.json" for job in range(3)]
    measured = [file.stat().st_mtime_ns if file.exists() else None for file in files]
    given = ("eval=[vectors,geometry]", "eval.geometry.samples=1_000_000", f"launcher={launcher}")
    more = ("hydra.launcher.n_jobs=1",) if launcher == "joblib" else ()
    process = begun("fsae.evaluate", str(sweep), *given, *more, outputs=outputs)
    wait_until(lambda: "evaluating" in logs[0].read_text()[lengths[0] :], process)
    os.kill(process.pid, number)
    done = ended(process)
    assert done.returncode == 128 + number, done.stdout
    assert "resume" not in done.stdout
    if launcher != "joblib":
        assert f"interrupted by {number.name}; the same command of fsae.evaluate starts" in done.stdout
    started = ["evaluating" in log.read_text()[length:] for log, length in zip(logs, lengths, strict=True)]
    assert launcher == "packed" or started == [True, False, False]
    # The evaluation that the signal stopped has written nothing; an earlier one may have.
    assert [file.stat().st_mtime_ns if file.exists() else None for file in files] == measured
    after = [results(sweep / str(job)) for job in range(3)]
    assert [was.keys() <= now.keys() for was, now in zip(before, after, strict=True)] == [True] * 3
    assert launcher == "packed" or after[1:] == before[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{sweep}/0", "seed=3"], "seed=3: a run is evaluated with the settings that it has; only eval, suite"),
        (["{sweep}/0", "+x=3"], "+x=3: a run is evaluated with"),
        (["{outputs}/nowhere"], "no such folder"),
        (["{sweep}/report"], "is not a run's folder: it has no status.json"),
        (["eval=[vectors]"], "name the folder of a run or of a sweep"),
        (
            ["{sweep}/0", "eval=vectors,truth"],
            "eval=vectors,truth: several evaluations are a list, as in eval=[",
        ),
        (["{sweep}/0", "eval.vectors.samples=1,2"], "eval.vectors.samples=1,2 has several values; give it one"),
        (["{sweep}/0", "eval=[]"], "eval names no evaluation; list one or more, as in eval=["),
        (["{sweep}/0", "eval=[vectors,vectors]"], "eval=[vectors,vectors]: vectors is listed twice; leave one out"),
        (["{sweep}/0", "+eval=[vectors]"], "+eval=[vectors]: a choice of eval has no +; leave it out"),
        (["{sweep}/0", "eval=[vectors"], "eval=[vectors: not an override Hydra can read"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_sentence(
    arguments: list[str], message: str, outputs: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as left:
        main([each.format(sweep=outputs / SWEEP, outputs=outputs) for each in arguments])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_jobs_of_a_sweep_that_are_not_finished_are_named_and_left_out(
    outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    sweep = outputs / SWEEP
    mark(sweep / "2", RunState.failed)
    try:
        evaluate_command(monkeypatch, str(sweep), "eval=[vectors]")
    finally:
        mark(sweep / "2", RunState.finished)
    assert f"not evaluated: the run in {sweep / '2'} is failed" in capsys.readouterr().err

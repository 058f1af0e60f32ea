"""`launcher=slurm` on a real Slurm: jobs that fail, are preempted, cancelled or killed."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cluster.sweeps import SHORT, assert_equal_runs, is_training, states_in, status_of
from tests.processes import begun, ended, wait_until

SLURM = ("launcher=slurm", "hydra.launcher.timeout_min=20", "hydra.launcher.cpus_per_task=1")

# Training takes some ten seconds, so that jobs can be disturbed during it.
LONG = ("debug=tiny", "eval=[vectors]", "trainer.checkpoint_seconds=1", "trainer.samples=800_000")


def job_id(folder: Path) -> str:
    """Return Slurm's id of the job with this run folder."""
    return json.loads((folder / "slurm.json").read_text())["job_id"]


def test_a_sweep_survives_a_failing_job_and_preemptions(slurm: dict[str, str], tmp_path: Path):
    folder = tmp_path / "sweeps" / "eight"
    rates = [f"{n}e-4" for n in range(1, 8)] + ["1e30"]
    process = begun(
        "fsae.run", "-m", *LONG, f"trainer.lr={','.join(rates)}", "tracking=mlflow", *SLURM,
        "hydra.launcher.partition=low", "hydra.launcher.array_parallelism=2", f"hydra.sweep.dir={folder}",
        outputs=tmp_path, **slurm,
    )  # fmt: skip
    wait_until(lambda: is_training(folder / "0") or is_training(folder / "1"), process)
    # It needs the whole node and its partition has priority, so Slurm preempts the jobs of the other partition.
    subprocess.run(
        ["sbatch", "--partition=high", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=true"],
        check=True, capture_output=True, env=os.environ | slurm,
    )  # fmt: skip
    wait_until(lambda: any(status_of(folder / job).get("state") == "interrupted" for job in "01"), process)
    done = ended(process, seconds=280)
    assert done.returncode == 1, done.stdout
    assert states_in(folder) == {str(job): "failed" if job == 7 else "finished" for job in range(8)}
    assert "8 jobs, 7 finished, 1 failed" in done.stdout
    assert "  7  trainer.lr=1e+30  failed: ValueError: loss, " in done.stdout
    resumed = [job for job in range(8) if "resuming at step" in (folder / str(job) / "run.log").read_text()]
    assert resumed
    # MLflow has one run per job, each with the state of its last attempt.
    from mlflow import MlflowClient

    runs = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"], "tags.`fsae.kind` = 'train'")
    assert sorted(run.info.status for run in runs) == ["FAILED"] + 7 * ["FINISHED"]
    job = resumed[0]
    alone = ended(begun("fsae.run", *LONG, f"trainer.lr={rates[job]}", outputs=tmp_path))
    assert alone.returncode == 0, alone.stdout
    (wanted,) = (tmp_path / "runs").iterdir()
    assert_equal_runs(folder / str(job), wanted)


def test_resuming_finishes_cancelled_and_killed_jobs(slurm: dict[str, str], tmp_path: Path):
    folder = tmp_path / "sweeps" / "two"
    process = begun(
        "fsae.run", "-m", *LONG, "tracking.flush_seconds=1,2,3", *SLURM, f"hydra.sweep.dir={folder}",
        outputs=tmp_path, **slurm,
    )  # fmt: skip
    wait_until(lambda: is_training(folder / "0") and is_training(folder / "1"), process)
    os.kill(status_of(folder / "0")["pid"], signal.SIGKILL)
    subprocess.run(["scancel", job_id(folder / "1")], check=True, env=os.environ | slurm)
    done = ended(process)
    assert done.returncode == 1, done.stdout
    assert "3 jobs, 1 killed, 1 interrupted, 1 finished" in done.stdout
    assert f"Slurm job {job_id(folder / '1')} is CANCELLED" in done.stdout
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, env=os.environ | slurm)
    assert queue.stdout.strip() == ""
    done = ended(begun("fsae.resume", str(folder), outputs=tmp_path, **slurm))
    assert done.returncode == 0, done.stdout
    for job in ("0", "1"):
        assert_equal_runs(folder / job, folder / "2")


@pytest.mark.parametrize("launcher", ["local", "packed"])
def test_a_finished_sweep_is_evaluated_again(launcher: str, slurm: dict[str, str], tmp_path: Path):
    folder = tmp_path / "sweeps" / "two"
    swept = ended(
        begun("fsae.run", "-m", *SHORT, "seed=1,2", f"launcher={launcher}", f"hydra.sweep.dir={folder}",
              outputs=tmp_path)
    )  # fmt: skip
    assert swept.returncode == 0, swept.stdout
    before = [json.loads((folder / job / "results.json").read_text()) for job in "01"]
    given = ("eval=[vectors,geometry]", "eval.geometry.samples=100")
    done = ended(begun("fsae.evaluate", str(folder), *given, *SLURM, outputs=tmp_path, **slurm))
    assert done.returncode == 0, done.stdout
    assert states_in(folder) == {"0": "finished", "1": "finished"}
    assert job_id(folder / "0") != job_id(folder / "1")
    for job, earlier in zip("01", before, strict=True):
        after = json.loads((folder / job / "results.json").read_text())
        assert "eval/regions" in after
        assert after["eval/fvu"] == earlier["eval/fvu"]
        assert f"\n{folder / job}: fvu {after['eval/fvu']:.4g}, " in done.stdout
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, env=os.environ | slurm)
    assert queue.stdout.strip() == ""


def test_a_cancelled_evaluation_leaves_its_run_finished(slurm: dict[str, str], tmp_path: Path):
    folder = tmp_path / "sweeps" / "two"
    swept = ended(begun("fsae.run", "-m", *SHORT, "seed=1,2", f"hydra.sweep.dir={folder}", outputs=tmp_path))
    assert swept.returncode == 0, swept.stdout
    before = (folder / "1" / "results.json").read_text()
    # One job at a time: the second one is cancelled before it starts.
    given = ("hydra.launcher.array_parallelism=1", "hydra.launcher.partition=low")
    process = begun("fsae.evaluate", str(folder), *SLURM, *given, outputs=tmp_path, **slurm)
    wait_until(lambda: (folder / "1" / "slurm.json").exists(), process)
    subprocess.run(["scancel", job_id(folder / "1")], check=True, env=os.environ | slurm)
    done = ended(process)
    assert done.returncode == 1, done.stdout
    # Slurm may forget a part of an array that never started.
    lost = rf"job 1 ended without a result \(Slurm job {job_id(folder / '1')} is (CANCELLED|gone), "
    assert re.search(lost, done.stdout), done.stdout
    assert "evaluated" in json.loads((folder / "0" / "results.json").read_text())
    assert (folder / "1" / "results.json").read_text() == before
    assert states_in(folder) == {"0": "finished", "1": "finished"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("hydra.launcher.partition=nowhere", "hydra.launcher.partition=nowhere: this Slurm has high, low, main"),
        ("hydra.launcher.gres=gpu:9", "launcher=slurm: sbatch refuses the jobs: Invalid generic resource (gres)"),
    ],
)
def test_impossible_slurm_settings_are_reported_before_anything_runs(
    setting: str, message: str, slurm: dict[str, str], tmp_path: Path
):
    done = ended(begun("fsae.run", "-m", *SHORT, "seed=1,2", *SLURM, setting, outputs=tmp_path, **slurm))
    assert done.returncode == 1
    assert done.stdout.count(f"fsae: {message}") == 1
    assert "Traceback" not in done.stdout
    assert not list((tmp_path / "sweeps").glob("*/*/[01]/status.json"))

"""A sweep from locking its folder to its summary, and its completion by `fsae.resume`."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from fsae.outputs.sweep_folder import JobState, Sweep, lock, read_sweep
from tests.cluster.sweeps import LONG, SHORT, assert_equal_runs, is_training, states_in
from tests.processes import begun, ended, wait_until


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def swept(outputs: Path) -> tuple[Path, str, int]:
    """A sweep's folder, output and exit status: one job cannot be run, one diverges, one finishes."""
    folder = outputs / "sweeps" / "day" / "time"
    done = ended(
        begun("fsae.run", "-m", *SHORT, "arch=topk", "arch.k=8,512", "trainer.lr=1e-3,1e30", "tracking=mlflow",
              f"hydra.sweep.dir={folder}", outputs=outputs)
    )  # fmt: skip
    return folder, done.stdout, done.returncode


def test_failing_jobs_stop_no_other_and_are_reported(swept: tuple[Path, str, int]):
    folder, output, exit_status = swept
    assert exit_status == 1
    assert states_in(folder) == {"0": "finished", "1": "failed", "2": "refused", "3": "refused"}
    end = output[output.index("sweep day/time: 4 jobs, 1 finished, 1 failed, 2 refused") :]
    assert "  1  arch.k=8,trainer.lr=1e+30  failed: ValueError: loss, " in end
    assert f"     {folder / '1'}\n" in end
    assert "  2  arch.k=512,trainer.lr=0.001  refused: ValueError: arch.k is 512, more than the 256 latents" in end
    assert f"-m fsae.resume {folder}\n" in end
    assert "Traceback" not in output


def test_the_summary_has_one_table_and_one_command_for_mlflow(swept: tuple[Path, str, int]):
    folder, output, _ = swept
    fvu = json.loads((folder / "0" / "results.json").read_text())["eval/fvu"]
    rows = [line.split() for line in output[output.index("sweep day/time") :].splitlines()]
    head = next(number for number, row in enumerate(rows) if row[:3] == ["k", "trainer.lr", "fvu"])
    assert rows[head + 1][:3] == ["8", "0.001", f"{fvu:.4g}"]
    assert [row[-1] for row in rows[head + 1 : head + 5]] == ["finished", "failed", "refused", "refused"]
    assert [row[:2] for row in rows[head + 2 : head + 5]] == [["8", "1e30"], ["512", "0.001"], ["512", "1e30"]]
    assert output.count("MLflow UI:") == 1
    # The table and the command are printed once, not per job.
    assert "run folder:" not in output
    assert output.count("fisher_ratio") == 1


def test_the_sweeps_runs_share_a_tag_in_mlflow(swept: tuple[Path, str, int], outputs: Path):
    from mlflow import MlflowClient

    _, output, _ = swept
    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fsae")
    assert experiment
    runs = client.search_runs([experiment.experiment_id], "tags.`fsae.sweep` = 'day/time'")
    jobs = {run.info.run_name: run for run in runs if run.data.tags["fsae.kind"] == "train"}
    assert {name: run.info.status for name, run in jobs.items()} == {
        "arch.k=8,trainer.lr=0.001,penalty=fisher": "FINISHED",
        "arch.k=8,trainer.lr=1e+30,penalty=fisher": "FAILED",
    }
    assert all("mlflow.parentRunId" not in run.data.tags for run in runs)
    assert jobs["arch.k=8,trainer.lr=1e+30,penalty=fisher"].data.tags["fsae.sweep_job"] == "1"
    diverged = jobs["arch.k=8,trainer.lr=1e+30,penalty=fisher"].info.run_id
    log = Path(client.download_artifacts(diverged, "run.log"))
    assert "Traceback" in log.read_text()
    (summary,) = (run for run in runs if run.data.tags["fsae.kind"] == "sweep")
    assert summary.info.status == "FAILED"
    counts = {name: count for name, count in summary.data.metrics.items() if count}
    assert counts == {"jobs/finished": 1, "jobs/failed": 1, "jobs/refused": 2}
    # Counts of zero are stored too, since a resumed sweep replaces all counts.
    assert summary.data.metrics.keys() == {f"jobs/{state.name}" for state in JobState}
    assert "1 finished, 1 failed, 2 refused" in summary.data.tags["mlflow.note.content"]
    # One row per job, with the differing settings, its numbers and its state.
    head, _, *rows = summary.data.tags["mlflow.note.content"].partition("\n\n")[0].splitlines()
    assert (head.count("fvu"), head.endswith("| state |"), len(rows)) == (1, True, 4)
    assert "&viewStateShareKey=fsae-" in output
    held = {artifact.path for artifact in client.list_artifacts(summary.info.run_id, "report")}
    assert "report/report.html" in held
    assert f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&searchFilter=" in output


def test_a_sweep_that_another_process_launches_is_refused(swept: tuple[Path, str, int], outputs: Path):
    folder, _, _ = swept
    held = lock(folder)
    done = ended(begun("fsae.resume", str(folder), outputs=outputs))
    held.release()
    assert done.returncode == 1
    assert f"another process is launching the sweep in {folder}" in done.stdout


def test_resuming_launches_only_unfinished_jobs(swept: tuple[Path, str, int], outputs: Path, tmp_path: Path):
    folder, _, _ = swept
    # Like a sweep that was killed between its jobs: job 3 was never started.
    sweep = read_sweep(folder)
    copy = tmp_path / "sweep"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("1", "2", "3", "report", "*.lock"))
    assert sweep.jobs
    Sweep(**{**vars(sweep), "folder": copy, "jobs": [*sweep.jobs[:1], [*SHORT, "arch=topk", "arch.k=4"]]}).write()
    results = (copy / "0" / "results.json").stat().st_mtime_ns
    # From another folder, by another launcher.
    done = ended(begun("fsae.resume", str(copy), "launcher=joblib", outputs=outputs))
    assert done.returncode == 0, done.stdout
    assert states_in(copy) == {"0": "finished", "1": "finished"}
    assert (copy / "0" / "results.json").stat().st_mtime_ns == results
    assert "2 jobs, 2 finished" in done.stdout
    overrides = (copy / "1" / "overrides.yaml").read_text()
    assert '"arch.k=4"' in overrides


def test_an_interrupted_and_resumed_sweep_gives_the_same_numbers(outputs: Path):
    folder = outputs / "sweeps" / "interrupted"
    # The jobs differ in bookkeeping only: the first, which is interrupted, must equal the second, which is not.
    process = begun("fsae.run", "-m", *LONG, "tracking.flush_seconds=1,2", f"hydra.sweep.dir={folder}", outputs=outputs)
    wait_until(lambda: is_training(folder / "0"), process)
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.returncode == 130, done.stdout
    assert states_in(folder) == {"0": "interrupted"}
    assert "2 jobs, 1 interrupted, 1 not started" in done.stdout
    done = ended(begun("fsae.resume", str(folder), outputs=outputs))
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("resuming at step") == 1
    assert_equal_runs(folder / "0", folder / "1")

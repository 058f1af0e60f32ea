"""`launcher=joblib`: what a killed worker takes down with it, which is its own job."""

import os
import signal
from pathlib import Path

import pytest

from fsae.sweeps.joblib_launcher import JoblibLauncher
from tests.commands import wait_until
from tests.sweeps.sweeps import LONG, assert_equal_runs, begun, ended, is_training, states_in, status_of


def test_a_killed_worker_takes_down_its_own_job_only(tmp_path: Path):
    folder = tmp_path / "sweeps" / "one"
    process = begun(
        "fsae.run",
        "-m",
        *LONG,
        "tracking.flush_seconds=1,2,3",
        "launcher=joblib",
        f"hydra.sweep.dir={folder}",
        outputs=tmp_path,
    )
    wait_until(lambda: is_training(folder / "0"), process)
    os.kill(status_of(folder / "0")["pid"], signal.SIGKILL)
    done = ended(process)
    assert done.returncode == 1, done.stdout
    # Job 2 was started after it, in the place that had become free.
    assert states_in(folder) == {"0": "running", "1": "finished", "2": "finished"}
    assert "3 jobs, 1 killed, 2 finished" in done.stdout
    assert "job 0 ended without a result (its process ended with SIGKILL(-9))" in done.stdout
    assert "Traceback" not in done.stdout
    done = ended(begun("fsae.resume", str(folder), outputs=tmp_path))
    assert done.returncode == 0, done.stdout
    assert_equal_runs(folder / "0", folder / "1")


def test_a_signal_to_the_launching_process_alone_has_the_job_save_too(tmp_path: Path):
    folder = tmp_path / "sweeps" / "one"
    process = begun(
        "fsae.run",
        "-m",
        *LONG,
        # Longer than anybody waits.
        "trainer.tokens=40_000_000",
        "seed=1,2",
        "launcher=joblib",
        "hydra.launcher.n_jobs=1",
        f"hydra.sweep.dir={folder}",
        outputs=tmp_path,
    )
    wait_until(lambda: is_training(folder / "0"), process)
    process.send_signal(signal.SIGINT)
    done = ended(process, seconds=60)
    assert done.returncode == 130, done.stdout
    assert states_in(folder) == {"0": "interrupted"}
    assert "2 jobs, 1 interrupted, 1 not started" in done.stdout


def test_no_job_at_a_time_is_refused():
    with pytest.raises(ValueError, match=r"hydra\.launcher\.n_jobs is 0; at least one job"):
        JoblibLauncher(n_jobs=0)

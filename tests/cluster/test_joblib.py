"""`launcher=joblib`: a killed worker ends its own job only."""

import signal
from pathlib import Path

import psutil
import pytest

from fsae.sweeps.joblib_launcher import JoblibLauncher
from tests.cluster.sweeps import (
    LONG,
    assert_a_killed_worker_takes_down_its_own_job_only,
    is_training,
    states_in,
    status_of,
)
from tests.processes import Command, begun, ended, wait_until


def swept(folder: Path, *overrides: str) -> Command:
    """Start a sweep of long jobs in a folder two levels below the outputs."""
    return begun(
        "fsae.run", "-m", *LONG, *overrides, "launcher=joblib", f"hydra.sweep.dir={folder}", outputs=folder.parents[1]
    )


def test_a_killed_worker_ends_its_own_job_only(tmp_path: Path):
    folder = tmp_path / "sweeps" / "one"
    output = assert_a_killed_worker_takes_down_its_own_job_only(
        swept(folder, "tracking.flush_seconds=1,2,3"),
        folder,
        tmp_path,
        reason="its process ended with SIGKILL(-9))",
    )
    assert "Traceback" not in output


def test_a_signal_to_the_launcher_makes_its_jobs_save(tmp_path: Path):
    folder = tmp_path / "sweeps" / "one"
    # Longer than the test waits.
    process = swept(folder, "trainer.samples=40_000_000", "seed=1,2", "hydra.launcher.n_jobs=1")
    wait_until(lambda: is_training(folder / "0"), process)
    process.send_signal(signal.SIGINT)
    done = ended(process, seconds=120)
    assert done.returncode == 130, done.stdout
    assert states_in(folder) == {"0": "interrupted"}
    assert "2 jobs, 1 interrupted, 1 not started" in done.stdout


def test_workers_save_and_end_if_the_launcher_is_killed(tmp_path: Path):
    folder = tmp_path / "sweeps" / "one"
    process = swept(folder, "trainer.samples=40_000_000", "seed=1,2", "hydra.launcher.n_jobs=1")
    wait_until(lambda: is_training(folder / "0"), process)
    worker = psutil.Process(status_of(folder / "0")["pid"])
    process.kill()
    process.wait()
    worker.wait(timeout=120)
    assert states_in(folder) == {"0": "interrupted"}
    assert (folder / "0" / "checkpoints" / "latest.pt").exists()


def test_n_jobs_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"hydra\.launcher\.n_jobs is 0; at least one job"):
        JoblibLauncher(n_jobs=0)

"""`launcher=ray` with two workers, in a network of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.commands import environment, wait_until
from tests.sweeps.sweeps import LONG, assert_equal_runs, begun, ended, is_training, states_in, status_of


def test_a_killed_worker_takes_down_its_own_job_only(in_namespace: list[str], tmp_path: Path):
    folder = tmp_path / "sweeps" / "ray"
    command = [
        *in_namespace, sys.executable, "-m", "fsae.run", "-m", *LONG, "tracking.flush_seconds=1,2,3", "launcher=ray",
        "hydra.launcher.num_cpus=2", f"hydra.sweep.dir={folder}",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: is_training(folder / "0"), process)
    os.kill(status_of(folder / "0")["pid"], signal.SIGKILL)
    done = ended(process)
    assert done.returncode == 1, done.stdout
    assert states_in(folder) == {"0": "running", "1": "finished", "2": "finished"}
    assert "3 jobs, 1 killed, 2 finished" in done.stdout
    assert "job 0 ended without a result (The worker died unexpectedly while executing this task" in done.stdout
    # Where there is no Ray, or it is not wanted any more.
    done = ended(begun("fsae.resume", str(folder), "launcher=local", outputs=tmp_path))
    assert done.returncode == 0, done.stdout
    assert_equal_runs(folder / "0", folder / "1")

"""`launcher=ray` with two workers, in a network of its own."""

import subprocess
import sys
from pathlib import Path

from tests.cluster.sweeps import LONG, assert_a_killed_worker_takes_down_its_own_job_only
from tests.processes import environment


def test_a_killed_worker_ends_its_own_job_only(in_namespace: list[str], tmp_path: Path):
    folder = tmp_path / "sweeps" / "ray"
    command = [
        *in_namespace, sys.executable, "-m", "fsae.run", "-m", *LONG, "tracking.flush_seconds=1,2,3", "launcher=ray",
        "hydra.launcher.num_cpus=2", f"hydra.sweep.dir={folder}",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert_a_killed_worker_takes_down_its_own_job_only(
        process,
        folder,
        tmp_path,
        # If Ray is missing or no longer needed.
        "launcher=local",
        reason="The worker died unexpectedly while executing this task",
    )

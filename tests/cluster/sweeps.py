"""Sweeps as people start them, each in a process of its own, and readers of their results."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file

from tests.processes import Command, begun, ended, wait_until
from tests.training.runs import differences

# A job of about a second after its imports.
SHORT = ("debug=tiny", "eval=[vectors]", "trainer.samples=4096", "source.tokens=4096", "source.shard_tokens=4096")
# A job that is long enough to be disturbed.
LONG = ("debug=tiny", "eval=[vectors]", "trainer.samples=150_000", "trainer.checkpoint_seconds=1")


def status_of(folder: Path) -> Mapping:
    """Return the folder's `status.json`, or an empty dictionary if there is none."""
    path = folder / "status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def states_in(sweep: Path) -> dict[str, str]:
    """Return each job's state, by the job's number."""
    return {path.name: status_of(path).get("state", "") for path in sorted(sweep.iterdir()) if path.name.isdecimal()}


def is_training(folder: Path) -> bool:
    """Return whether the run has logged something."""
    path = folder / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def assert_equal_runs(folder: Path, wanted: Path) -> None:
    """Assert that both runs have the same autoencoder and the same results, bit for bit."""
    for name in ("sae_weights.safetensors", "sparsity.safetensors"):
        assert differences(load_file(folder / "sae" / name), load_file(wanted / "sae" / name)) == []
    assert json.loads((folder / "results.json").read_text()) == json.loads((wanted / "results.json").read_text())


def assert_a_killed_worker_takes_down_its_own_job_only(
    process: "Command | subprocess.Popen[str]", folder: Path, outputs: Path, *launcher: str, reason: str
) -> str:
    """Kill the worker of the first of three equal jobs, two at a time, and finish the sweep afterwards; returns its
    output. `launcher` is the launcher that finishes it, `reason` is why the job was lost."""
    # On a busy machine the first worker of Ray takes minutes to start.
    wait_until(lambda: is_training(folder / "0"), process, seconds=400)
    os.kill(status_of(folder / "0")["pid"], signal.SIGKILL)
    swept = ended(process)
    assert swept.returncode == 1, swept.stdout
    # Job 2 was started after it, by a new worker.
    assert states_in(folder) == {"0": "running", "1": "finished", "2": "finished"}
    assert "3 jobs, 1 killed, 2 finished" in swept.stdout
    assert f"job 0 ended without a result ({reason}" in swept.stdout
    resumed = ended(begun("fsae.resume", str(folder), *launcher, outputs=outputs))
    assert resumed.returncode == 0, resumed.stdout
    assert_equal_runs(folder / "0", folder / "1")
    return swept.stdout

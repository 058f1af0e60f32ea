"""`python -m fsae.run` as people start it: in a process of its own, with its own outputs folder."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def environment(outputs: Path, **more: str) -> dict[str, str]:
    """This process' environment less what would change a run, on one thread (several only wait here)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "HYDRA", "FSAE"))}
    cache = {"FSAE_CACHE": os.environ["FSAE_CACHE"]} if "FSAE_CACHE" in os.environ else {}
    return {**kept, **cache, "OMP_NUM_THREADS": "1", "FSAE_OUTPUTS": str(outputs), **more}


def start(*arguments: str, outputs: Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start it and do not wait."""
    command = [sys.executable, "-m", "fsae.run", *arguments]
    return subprocess.Popen(
        command, env=environment(outputs), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(*arguments: str, outputs: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Start it and wait for its end; what it said, on both streams, is `stdout`."""
    process = start(*arguments, outputs=outputs, cwd=cwd)
    said, _ = process.communicate(timeout=200)
    return subprocess.CompletedProcess(arguments, process.returncode, said)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Look every few milliseconds whether the condition holds; the process must not end before."""
    began = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - began < seconds, "it took too long"
        time.sleep(0.005)

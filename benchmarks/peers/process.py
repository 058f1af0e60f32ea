"""A library at its job in a process of its own, led from here step by step."""

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import ROOT
from benchmarks.peers.job import Job


class StoppedError(Exception):
    """The process ended by itself; the message is the last that it said."""


class Process:
    """A worker that waits for what to do.

    Args:
        job: what it trains.
        python: with which the library is installed.
        tree: whose source and benchmarks are run; this working tree's if None.
    """

    def __init__(self, job: Job, python: Path, tree: Path | None = None):
        self.job = job
        # An editable install would find our source, whatever the tree.
        source = {"PYTHONPATH": str(tree / "src")} if tree else {}
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.peers.worker", json.dumps(asdict(job))],
            cwd=tree or ROOT,
            # Nothing that they need is on a hub.
            env=os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"} | source,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def __enter__(self) -> "Process":
        """Wait until it is ready.

        Raises:
            StoppedError: it could not build what it was asked for.
        """
        try:
            self.versions: dict[str, str] = self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        # A word that it did not live to read is still to be written.
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def step(self) -> None:
        """Make the next step."""
        self._ask("step")

    def time(self) -> float:
        """Seconds of the next step."""
        return self._ask("time")

    def measure(self) -> dict[str, float]:
        """`error`, `fvu` and `l0` on the held-out vectors."""
        return self._ask("measure")

    def memory(self) -> int:
        """Bytes that training took at its peak so far."""
        return self._ask("memory")

    def _ask(self, word: str) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # What it said before it ended is read below.
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            last = self._said.read().strip().splitlines() or ["no output"]
            raise StoppedError(f"{self.job.library} {self.job.architecture} {self.job.mode}: {last[-1]}")
        return json.loads(line)

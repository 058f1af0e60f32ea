"""A library that trains in another process, controlled step by step."""

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
    """The end of a process that was not asked for; the message is its last line of output."""


class Process:
    """A worker that waits for commands.

    Args:
        job: its job.
        python: the Python of the library's environment.
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
            # They need nothing from a hub.
            env=os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"} | source,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def __enter__(self) -> "Process":
        """Wait until it is ready.

        Raises:
            StoppedError: the worker could not build the job.
        """
        try:
            self.versions: dict[str, str] = self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        # A command that the ended process did not read is still in the pipe.
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

    def time(self, clock: str = "time") -> float:
        """Make the next step and return its seconds, or with `cpu_time` those that the process itself computed."""
        return self._ask(clock)

    def measure(self) -> dict[str, float]:
        """Return `error`, `fvu` and `l0` on the held-out vectors."""
        return self._ask("measure")

    def memory(self) -> int:
        """Return the peak memory of training so far, in bytes."""
        return self._ask("memory")

    def _ask(self, word: str) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # Its output is read below.
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

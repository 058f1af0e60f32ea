"""`python -m fsae.run` and other commands as people start them: each in a process of its own, with its own outputs
folder.

Imports take most of a small run's time. So a process is a copy (`fork`) of one that has imported what runs need, and
only that. `environment` is for the tests of what happens before or during imports, which start Python themselves.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

# What runs import late is named here: the libraries of language models, pictures and optimisers.
IMPORTED = ["fsae.commands.run", "fsae.runs.pack", "transformer_lens.model_bridge", "torch._dynamo", "scipy.optimize"]


def environment(outputs: Path, **more: str) -> dict[str, str]:
    """This process' environment less what would change a run, on one thread (several only wait here)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "HYDRA", "FSAE"))}
    cache = {"FSAE_CACHE": os.environ["FSAE_CACHE"]} if "FSAE_CACHE" in os.environ else {}
    return {**kept, **cache, "OMP_NUM_THREADS": "1", "FSAE_OUTPUTS": str(outputs), **more}


class Command:
    """A command in a process of its own, with the interface of `subprocess.Popen`; both streams go to one file.

    Args:
        arguments: what follows `python -m`.
        environment: all variables.
        cwd: the folder in which it runs.
    """

    def __init__(self, arguments: tuple[str, ...], environment: Mapping[str, str], cwd: Path) -> None:
        self.args = arguments
        number, name = tempfile.mkstemp()
        os.close(number)
        self._said = Path(name)
        # At the end of these tests at the latest.
        weakref.finalize(self, self._said.unlink)
        given = (arguments, dict(environment), cwd, name)
        self._process = _prepared().Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, minus the signal's number if one ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 250) -> int:
        """Wait for its end, and return the exit status."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout, self._printed())
        return self._process.exitcode

    def communicate(self, timeout: float = 250) -> tuple[str, None]:
        """Wait for its end, and return what it printed."""
        self.wait(timeout)
        return self._printed(), None

    def _printed(self) -> str:
        return self._said.read_text(encoding="utf-8")


def begun(*arguments: str, outputs: Path, **more: str) -> Command:
    """Start `python -m ARGUMENTS` in the outputs folder without waiting; `more` is added to its environment."""
    return Command(arguments, environment(outputs, **more), outputs)


def ended(process: "Command | subprocess.Popen[str]", seconds: float = 250) -> subprocess.CompletedProcess[str]:
    """Wait for the process to end; `stdout` has the output of both streams."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def start(*arguments: str, outputs: Path, cwd: Path | None = None) -> Command:
    """Start `python -m fsae.run` and do not wait."""
    return Command(("fsae.run", *arguments), environment(outputs), cwd or Path.cwd())


def finished(*arguments: str, outputs: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Start `python -m fsae.run` and wait for its end; what it said, on both streams, is `stdout`."""
    return ended(start(*arguments, outputs=outputs, cwd=cwd))


def wait_until(condition: Callable[[], bool], process: "Command | subprocess.Popen[str]", seconds: float = 120) -> None:
    """Look every few milliseconds whether the condition holds; the process must not end before."""
    began = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - began < seconds, "it took too long"
        time.sleep(0.005)


@cache
def _prepared() -> ForkServerContext:
    """Start the process that others are copies of."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment(Path()))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _run(arguments: tuple[str, ...], environment: dict[str, str], cwd: Path, said: str) -> None:
    """Do what Python does with `-m ARGUMENTS`."""
    file = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    # Also if the tests run in a shell's background, where Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module, *sys.argv[1:] = arguments
    sys.path.insert(0, str(cwd))
    runpy.run_module(module, run_name="__main__", alter_sys=True)

"""`launcher=joblib`: several jobs at a time, each in a process of this machine."""

import logging
import os
import queue
import re
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import psutil
from hydra.core.utils import JobReturn, filter_overrides

from fsae.sweeps.worker import Worker, WorkerLauncher

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0


@dataclass
class JoblibSettings:
    """Settings of `launcher=joblib`.

    Attributes:
        n_jobs: jobs at a time; each needs at least one core (set OMP_NUM_THREADS accordingly).
    """

    _target_: str = "hydra_plugins.fsae.JoblibLauncher"
    n_jobs: int = 2


class JoblibLauncher(WorkerLauncher):
    """A launcher of jobs in joblib's worker processes (loky), `n_jobs` at a time.

    All of a loky pool fails if one of its processes is killed, so every worker is a pool of its own: a killed job takes
    no other down with it, and a new worker replaces its worker.
    """

    def __init__(self, n_jobs: int):
        if n_jobs < 1:
            raise ValueError(f"hydra.launcher.n_jobs is {n_jobs}; at least one job must run at a time")
        self.n_jobs = n_jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; returns their records in their order."""
        log.info("%d jobs, %d at a time", len(job_overrides), self.n_jobs)
        returns: dict[int, JobReturn] = {}
        waiting: queue.SimpleQueue[tuple[int, Sequence[str]]] = queue.SimpleQueue()
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            waiting.put((number, overrides))
        stop = threading.Event()
        # Events instead of `join`: if Ctrl-C interrupts `join`, Python takes the thread for ended.
        ended = [threading.Event() for _ in range(min(self.n_jobs, len(job_overrides)))]

        def work(over: threading.Event) -> None:
            try:
                self._work(waiting, returns, stop)
            finally:
                over.set()

        for over in ended:
            threading.Thread(target=work, args=(over,), daemon=True).start()
        try:
            for over in ended:
                over.wait()
        except (KeyboardInterrupt, SystemExit):
            stop.set()
            # A terminal's Ctrl-C has reached the workers too; any other signal has reached this process only.
            for process in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)
            log.warning("no further jobs are started; running jobs save their state")
            for over in ended:
                over.wait()
            raise
        return [returns[number] for number in sorted(returns)]

    def _work(
        self,
        waiting: "queue.SimpleQueue[tuple[int, Sequence[str]]]",
        returns: dict[int, JobReturn],
        stop: threading.Event,
    ) -> None:
        from joblib.externals.loky import ProcessPoolExecutor
        from joblib.externals.loky.process_executor import BrokenProcessPool

        pool = None
        while not stop.is_set():
            try:
                number, overrides = waiting.get_nowait()
            except queue.Empty:
                break
            pool = pool or ProcessPoolExecutor(max_workers=1)
            log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
            try:
                job: Future[JobReturn] = pool.submit(_run, self.worker, os.getpid(), list(overrides), number)
                returns[number] = job.result()
            except BrokenProcessPool as error:
                # Such a pool ends by itself, and closes the pipe that `shutdown` writes to at any moment.
                with suppress(OSError):
                    pool.shutdown()
                pool = None
                returns[number] = self.worker.lost(overrides, number, _reason(error))
            except BaseException as error:
                returns[number] = self.worker.lost(overrides, number, repr(error))
        if pool:
            pool.shutdown()


def _run(worker: Worker, launcher: int, overrides: list[str], number: int) -> JobReturn:
    _end_with(launcher)
    return worker(overrides, number)


@cache
def _end_with(launcher: int) -> None:
    """Send SIGTERM to this process once the launcher's process has ended, since no other process would end it."""

    def watch() -> None:
        while True:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if os.getppid() != launcher:
                # The signal makes a running job save its state and end; between jobs it ends the process.
                os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch on the launcher", daemon=True).start()


def _reason(error: BaseException) -> str:
    """Return the exit code, which loky names within a long text."""
    named = re.search(r"exit codes of the workers are \{(.*)\}", str(error))
    return f"its process ended with {named[1]}" if named else "its process was killed"

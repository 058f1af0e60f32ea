"""Signals that ask a run to stop: they only set a flag, and the loop acts on it when its state is complete."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """Request to stop the run, by the signal `signal_name`; `saved` is true if the run's state was saved."""

    def __init__(self, signal_name: str, saved: bool = True):
        super().__init__(f"interrupted by {signal_name}" + ("" if saved else " a second time, before it could save"))
        self.signal_name = signal_name
        self.saved = saved


class Interruption:
    """Listener for signals while it is entered; a second SIGINT stops at once.

    SIGHUP is the end of the terminal, unless `nohup` makes the process ignore it. Slurm can be configured to send
    SIGUSR2 some time before it ends a job, for its time limit or for a job of higher priority.

    Attributes:
        signal_name: the signal received, or None; within another listener also the signal that the other received.
    """

    def __init__(self):
        self.signal_name: str | None = None
        self._at_once = self._saving = False

    def __enter__(self) -> "Interruption":
        outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if isinstance(outer, Interruption):
            self.signal_name = outer.signal_name
        heard = [number for number in SIGNALS if not _is_ignored_hangup(number)]
        self._previous = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name is not None and not self._saving:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        if self._at_once:
            # Only once: the code after it may have to clean up.
            self._at_once = False
            raise Interrupted(self.signal_name)

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.signal_name is not None:
            raise Interrupted(self.signal_name)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Act on a signal at once, during work without results to save, such as waiting and opening.

        Raises:
            Interrupted: a signal has come, before or within.
        """
        self.check()
        self._at_once = True
        try:
            yield
        except Exception as error:
            # A library may have replaced the exception by another one.
            if self.signal_name is not None and not isinstance(error, Interrupted):
                raise Interrupted(self.signal_name) from error
            raise
        finally:
            self._at_once = False
        self.check()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Delay also a second SIGINT while the state is written, because the first one waits for that."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False


def _is_ignored_hangup(number: int) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def hand_on(interrupted: Interrupted) -> None:
    """Leave a job that submitit started, whose state is saved, to Slurm; do nothing for other processes.

    On SIGUSR2 submitit's own handler requeues the job and ends the process. SIGTERM comes from `scancel`, and from
    preemption on clusters that use no other signal. Only Slurm knows the cause, so the process waits to be killed:
    Slurm then requeues a preempted job, and a cancelled job stays cancelled.

    Raises:
        SystemExit: the job is requeued.
        Exception: submitit's reason for not requeuing it.
    """
    if "SUBMITIT_FOLDER" not in os.environ:
        return
    if interrupted.signal_name == "SIGUSR2":
        signal.raise_signal(signal.SIGUSR2)
    while interrupted.signal_name == "SIGTERM":
        signal.pause()

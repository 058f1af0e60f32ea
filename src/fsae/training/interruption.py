"""Signals that ask a run to stop: they only set a flag, and the loop acts on it where its state is whole."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """The run was asked to stop; `signal_name` says by what, `saved` whether its state was saved for it."""

    def __init__(self, signal_name: str, saved: bool = True):
        super().__init__(f"interrupted by {signal_name}" + ("" if saved else " a second time, before it could save"))
        self.signal_name = signal_name
        self.saved = saved


class Interruption:
    """Listens while it is entered; a second SIGINT stops at once.

    SIGHUP is the end of the terminal, unless `nohup` has it ignored. SIGUSR2 is what Slurm can be asked to send some
    time before it ends a job, be it for its time limit or for a job of more weight.

    Attributes:
        signal_name: what has come, None for nothing; within another one also what came to that one.
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
            # Once only: what follows it may have something to put in order.
            self._at_once = False
            raise Interrupted(self.signal_name)

    def check(self) -> None:
        """Raise Interrupted where a signal has come."""
        if self.signal_name is not None:
            raise Interrupted(self.signal_name)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Act on a signal where it comes, for work of which nothing has to be saved, such as waiting and opening.

        Raises:
            Interrupted: a signal has come, before or within.
        """
        self.check()
        self._at_once = True
        try:
            yield
        except Exception as error:
            # A library on the way may have made something else of it.
            if self.signal_name is not None and not isinstance(error, Interrupted):
                raise Interrupted(self.signal_name) from error
            raise
        finally:
            self._at_once = False
        self.check()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Hold off a second SIGINT too, as long as the state is written: it is what the first one waits for."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False


def _is_ignored_hangup(number: int) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def hand_on(interrupted: Interrupted) -> None:
    """With the state saved, leave to Slurm what becomes of a job that submitit started; does nothing elsewhere.

    On SIGUSR2 submitit's own handler has the job requeued and ends the process. SIGTERM is what `scancel` sends, and
    preemption on clusters that know no other signal. Only Slurm knows which it was, so the kill is waited for: a
    preempted job is then requeued by Slurm itself, a cancelled one stays cancelled.

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

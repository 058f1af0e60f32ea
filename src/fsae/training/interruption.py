"""Signals that ask a run to stop: they only set a flag, and the loop acts on it where its state is whole."""

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """The run was asked to stop; `signal_name` says by what."""

    def __init__(self, signal_name: str):
        super().__init__(f"interrupted by {signal_name}")
        self.signal_name = signal_name


class Interruption:
    """Listens while it is entered; a second SIGINT stops at once.

    SIGUSR2 is what Slurm can be asked to send some time before it ends a job, be it for its time limit or for a job
    of more weight.
    """

    def __init__(self):
        self.signal_name: str | None = None

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name is not None:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name

    def check(self) -> None:
        """Raise Interrupted where a signal has come."""
        if self.signal_name is not None:
            raise Interrupted(self.signal_name)


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

"""Signals that ask a run to stop: they only set a flag, and the loop acts on it where its state is whole."""

import signal
from types import FrameType


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """The run was asked to stop; `signal_name` says by what."""

    def __init__(self, signal_name: str):
        super().__init__(f"interrupted by {signal_name}")
        self.signal_name = signal_name


class Interruption:
    """Listens for SIGTERM and SIGINT while it is entered; a second SIGINT stops at once."""

    def __init__(self):
        self.signal_name: str | None = None

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
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

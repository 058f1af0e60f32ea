"""The console: what people read while a command runs.

Writing to it never fails, a live bar keeps its own line, and passwords and tokens are left out.
"""

import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType, TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from fsae.credentials import concealed

# Of a log record that a live bar on the terminal shows already.
IN_THE_BAR = {"in_the_bar": True}


class _LenientFile(io.FileIO):
    """A file that drops what cannot be written: nobody reads the pipe any more, the disk is full, the terminal is gone.

    Attributes:
        failure: why something was dropped last.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            # None: a pipe that does not block, and is full.
            return super().write(data) or size
        except OSError as error:
            self.failure = error
            return size


class _Console(_LenientFile):
    """Standard output or error; on a terminal bars make way for what is written."""

    def write(self, data: Any) -> int:
        bars = _bars if self.isatty() else None
        with nullcontext() if bars is None else tqdm.external_write_mode(file=bars):
            return super().write(data)


class SafeText(io.TextIOWrapper):
    """Text that is written line by line, as far as it can be, and without passwords and tokens.

    A character without a code is written as its number.
    """

    def __init__(self, file: io.FileIO, encoding: str = "utf-8") -> None:
        super().__init__(io.BufferedWriter(file), encoding=encoding, errors="backslashreplace", line_buffering=True)
        self._file = file

    def write(self, text: str) -> int:
        super().write(concealed(text))
        return len(text)

    @property
    def failure(self) -> OSError | None:
        """Why something could not be written; None if everything was."""
        return self._file.failure if isinstance(self._file, _LenientFile) else None


# What live bars are drawn on, while `console` is entered.
_bars: TextIO | None = None


def lenient_file(path: str) -> SafeText:
    """Append text to the file at `path`, as far as that is possible.

    Raises:
        OSError: it cannot be opened.
    """
    return SafeText(_LenientFile(path, "a"))


@contextmanager
def console(bars: bool = True) -> Iterator[None]:
    """Make sure that printing and logging to the console cannot fail while this is entered; also a decorator.

    Standard streams that are closed are opened on nothing: else the next file to be opened would get their number, and
    with it whatever a library writes to that number. Ctrl-C is told in one line.

    Args:
        bars: whether live bars are shown on a terminal; not by several processes on one terminal.
    """
    global _bars
    # What ends a process is printed when this is left.
    sys.excepthook = _print_exception
    # Entered already, or somebody else's: a notebook's, a test's.
    if sys.stdout not in (None, sys.__stdout__):
        yield
        return
    before, bars_before = (sys.stdout, sys.stderr), _bars
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # The lowest number that is free.
            assert os.open(os.devnull, os.O_RDWR) >= number
    for stream in before:
        if stream is not None:
            stream.flush()
    sys.stdout, sys.stderr = (SafeText(_Console(number, "w", closefd=False), _encoding(number)) for number in (1, 2))
    _bars = SafeText(_LenientFile(2, "w", closefd=False), _encoding(2)) if bars else None
    try:
        yield
    except KeyboardInterrupt:
        # Whoever has something to save has done it by now.
        print("fsae: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        (sys.stdout, sys.stderr), _bars = before, bars_before


def _print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(concealed("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _encoding(number: int) -> str:
    stream = sys.__stdout__ if number == 1 else sys.__stderr__
    return stream.encoding if stream is not None else "utf-8"


def leave_on_signals() -> None:
    """Until whoever has something to save listens: on Ctrl-C and the like, leave at once with a line."""

    def leave(number: int, frame: FrameType | None) -> None:
        # Not by an exception: it might come within an import, and be taken for the failure of that.
        with suppress(OSError):
            os.write(2, f"fsae: interrupted by {signal.Signals(number).name}\n".encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def live_bar(**settings: Any) -> "tqdm[Any]":
    """A bar of tqdm's on the terminal; without one, or outside of `console`, it is disabled and shows nothing."""
    # A terminal that nobody gave a size has room for no bar.
    shown = _bars is not None and _bars.isatty() and os.get_terminal_size(_bars.fileno()).columns > 0
    return tqdm(**settings, file=_bars, dynamic_ncols=True, disable=not shown)


class OutsideBars(logging.Filter):
    """Lets through what no live bar shows."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(record, "in_the_bar", False)

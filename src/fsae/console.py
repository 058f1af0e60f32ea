"""The console, which people read while a command runs.

Writing to it never fails, a live bar keeps its own line, and passwords and tokens are hidden.
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

# Marks a log record whose content a live bar on the terminal already shows.
IN_THE_BAR = {"in_the_bar": True}


class _LenientFile(io.FileIO):
    """A file that drops what cannot be written: the pipe has no reader, the disk is full, the terminal is gone.

    Attributes:
        failure: why something was dropped last.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            # None means that a non-blocking pipe is full.
            return super().write(data) or size
        except OSError as error:
            self.failure = error
            return size


class _Console(_LenientFile):
    """Standard output or error; on a terminal, live bars are cleared while text is written."""

    def write(self, data: Any) -> int:
        bars = _bars if self.isatty() else None
        with nullcontext() if bars is None else tqdm.external_write_mode(file=bars):
            return super().write(data)


class SafeText(io.TextIOWrapper):
    """A text stream that is flushed after every line and hides passwords and tokens.

    A character that the encoding lacks is written as its number.
    """

    def __init__(self, file: io.FileIO, encoding: str = "utf-8") -> None:
        super().__init__(io.BufferedWriter(file), encoding=encoding, errors="backslashreplace", line_buffering=True)
        self._file = file

    def write(self, text: str) -> int:
        super().write(concealed(text))
        return len(text)

    @property
    def failure(self) -> OSError | None:
        """Why something could not be written last; None if everything was written."""
        return self._file.failure if isinstance(self._file, _LenientFile) else None


# The stream of live bars, while `console` is entered.
_bars: TextIO | None = None


def lenient_file(path: str) -> SafeText:
    """Open the file at `path` for appending text; what cannot be written is dropped.

    Raises:
        OSError: it cannot be opened.
    """
    return SafeText(_LenientFile(path, "a"))


@contextmanager
def console(bars: bool = True) -> Iterator[None]:
    """Keep printing and logging to the console from failing within the block; also usable as a decorator.

    Closed standard streams are opened on the null device: otherwise the next opened file would get their number, and
    receive what libraries write to that number. Ctrl-C is reported in one line.

    Args:
        bars: whether live bars are shown on a terminal; false if several processes share the terminal.
    """
    global _bars
    # An exception that ends the process is printed after the block.
    sys.excepthook = _print_exception
    # The block is entered already, or the streams belong to a notebook or a test.
    if sys.stdout not in (None, sys.__stdout__):
        yield
        return
    before, bars_before = (sys.stdout, sys.stderr), _bars
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # The system opens the lowest free number.
            assert os.open(os.devnull, os.O_RDWR) >= number
    for stream in before:
        if stream is not None:
            stream.flush()
    sys.stdout, sys.stderr = (SafeText(_Console(number, "w", closefd=False), _encoding(number)) for number in (1, 2))
    _bars = SafeText(_LenientFile(2, "w", closefd=False), _encoding(2)) if bars else None
    try:
        yield
    except KeyboardInterrupt:
        # Code that had something to save has saved it by now.
        print("fsae: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        (sys.stdout, sys.stderr), _bars = before, bars_before


@contextmanager
def bars() -> Iterator[None]:
    """Show live bars on the terminal while this is entered, for a program that is none of the commands."""
    global _bars
    before = _bars
    _bars = before or sys.stderr
    try:
        yield
    finally:
        _bars = before


def _print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(concealed("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _encoding(number: int) -> str:
    stream = sys.__stdout__ if number == 1 else sys.__stderr__
    return stream.encoding if stream is not None else "utf-8"


def leave_on_signals() -> None:
    """Exit at once with one line on Ctrl-C and SIGTERM, until code that has something to save handles them."""

    def leave(number: int, frame: FrameType | None) -> None:
        # Not by an exception: during an import it could be taken for the import's failure.
        with suppress(OSError):
            os.write(2, f"fsae: interrupted by {signal.Signals(number).name}\n".encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def live_bar(**settings: Any) -> "tqdm[Any]":
    """Return a tqdm bar on the terminal; without a terminal, or outside `console`, it is disabled and shows nothing."""
    # A terminal without a size has no room for a bar.
    shown = _bars is not None and _bars.isatty() and os.get_terminal_size(_bars.fileno()).columns > 0
    return tqdm(**settings, file=_bars, dynamic_ncols=True, disable=not shown)


class OutsideBars(logging.Filter):
    """A log filter that drops what a live bar shows."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(record, "in_the_bar", False)

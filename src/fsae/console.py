"""The console: what people read while a command runs. Writing to it never fails, and a live bar keeps its own line."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TextIO

from tqdm import tqdm

# Of a log record that a live bar on the terminal shows already.
IN_THE_BAR = {"in_the_bar": True}


class _Forgiving(io.FileIO):
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


class _Console(_Forgiving):
    """Standard output or error; on a terminal bars make way for what is written."""

    def write(self, data: Any) -> int:
        bars = _bars if self.isatty() else None
        with nullcontext() if bars is None else tqdm.external_write_mode(file=bars):
            return super().write(data)


class Words(io.TextIOWrapper):
    """Text that is written line by line, as far as it can be; a character without a code is written as its number."""

    def __init__(self, file: io.FileIO, encoding: str = "utf-8") -> None:
        super().__init__(io.BufferedWriter(file), encoding=encoding, errors="backslashreplace", line_buffering=True)
        self._file = file

    @property
    def failure(self) -> OSError | None:
        """Why something could not be written; None if everything was."""
        return self._file.failure if isinstance(self._file, _Forgiving) else None


# What live bars are drawn on, while `console` is entered.
_bars: TextIO | None = None


def forgiving_file(path: str) -> Words:
    """Append text to the file at `path`, as far as that is possible.

    Raises:
        OSError: it cannot be opened.
    """
    return Words(_Forgiving(path, "a"))


@contextmanager
def console() -> Iterator[None]:
    """Make sure that printing and logging to the console cannot fail while this is entered; also a decorator.

    Standard streams that are closed are opened on nothing: else the next file to be opened would get their number, and
    with it whatever a library writes to that number.
    """
    global _bars
    if isinstance(sys.stdout, Words):
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
    sys.stdout, sys.stderr = (Words(_Console(number, "w", closefd=False), _encoding(number)) for number in (1, 2))
    _bars = Words(_Forgiving(2, "w", closefd=False), _encoding(2))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        (sys.stdout, sys.stderr), _bars = before, bars_before


def _encoding(number: int) -> str:
    stream = sys.__stdout__ if number == 1 else sys.__stderr__
    return stream.encoding if stream is not None else "utf-8"


def live_bar(**settings: Any) -> "tqdm[Any]":
    """A bar of tqdm's on the terminal; without a terminal it is disabled and shows nothing."""
    stream = _bars or sys.stderr
    return tqdm(**settings, file=stream, dynamic_ncols=True, disable=stream is None or not stream.isatty())


class BesideBars(logging.Filter):
    """Lets through what no live bar shows."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(record, "in_the_bar", False)

"""`run.log`: what a run said. Runs may share a process: what is said for one is in its file only, the rest in all."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from fsae.console import SafeText, lenient_file
from fsae.outputs.run_folder import RunFolder

log = logging.getLogger(__name__)

_speaking: ContextVar[Path | None] = ContextVar("speaking", default=None)


@contextmanager
def logging_for(folder: Path) -> Iterator[None]:
    """What is logged within concerns this run only."""
    token = _speaking.set(folder)
    try:
        yield
    finally:
        _speaking.reset(token)


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Append what is logged to the folder's `run.log`, less what concerns other runs.

    A line that cannot be written is left out, and that is logged at the end: it is no reason for a run to fail.

    Raises:
        OSError: the file cannot be opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = _RunLogHandler(RunFolder(folder).log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(lambda record: _speaking.get() in (None, folder))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        if handler.words.failure is not None:
            log.warning("%s lacks lines: %s", RunFolder(folder).log, handler.words.failure.strerror)


@contextmanager
def run_name_prefixes() -> Iterator[None]:
    """On the console, put the folder's name before what concerns one run only."""
    consoles = [handler for handler in logging.getLogger().handlers if not isinstance(handler, _RunLogHandler)]
    formatters = [handler.formatter for handler in consoles]
    for handler in consoles:
        handler.setFormatter(_Named(handler.formatter or logging.Formatter()))
    try:
        yield
    finally:
        for handler, formatter in zip(consoles, formatters, strict=True):
            handler.setFormatter(formatter)


class _RunLogHandler(logging.StreamHandler[SafeText]):
    def __init__(self, path: Path) -> None:
        self.words = lenient_file(str(path))
        super().__init__(self.words)

    def close(self) -> None:
        super().close()
        self.words.close()


class _Named(logging.Formatter):
    def __init__(self, inner: logging.Formatter):
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        folder, text = _speaking.get(), self._inner.format(record)
        return f"[{folder.name}] {text}" if folder else text

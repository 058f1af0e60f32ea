"""`run.log`: a run's log. Of runs that share a process, each file has the run's own lines and the common ones."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from fsae.console import SafeText, lenient_file
from fsae.outputs.run_folder import RunFolder

log = logging.getLogger(__name__)

_current_run: ContextVar[Path | None] = ContextVar("current run", default=None)


@contextmanager
def logging_for(folder: Path) -> Iterator[None]:
    """Mark what is logged within the block as concerning this run only."""
    token = _current_run.set(folder)
    try:
        yield
    finally:
        _current_run.reset(token)


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Append what is logged to the folder's `run.log`, except lines that concern other runs.

    A line that cannot be written is dropped and a warning is logged at the end: a run does not fail because of its log.

    Raises:
        OSError: the file cannot be opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = _RunLogHandler(RunFolder(folder).log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(lambda record: _current_run.get() in (None, folder))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        if handler.stream.failure is not None:
            log.warning("%s lacks lines: %s", RunFolder(folder).log, handler.stream.failure.strerror)


@contextmanager
def run_name_prefixes() -> Iterator[None]:
    """Prefix console lines that concern one run only with the name of its folder."""
    consoles = [handler for handler in logging.getLogger().handlers if not isinstance(handler, _RunLogHandler)]
    formatters = [handler.formatter for handler in consoles]
    for handler in consoles:
        handler.setFormatter(_Prefixed(handler.formatter or logging.Formatter()))
    try:
        yield
    finally:
        for handler, formatter in zip(consoles, formatters, strict=True):
            handler.setFormatter(formatter)


class _RunLogHandler(logging.StreamHandler[SafeText]):
    def __init__(self, path: Path) -> None:
        super().__init__(lenient_file(str(path)))

    def close(self) -> None:
        super().close()
        self.stream.close()


class _Prefixed(logging.Formatter):
    def __init__(self, inner: logging.Formatter):
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        folder, text = _current_run.get(), self._inner.format(record)
        return f"[{folder.name}] {text}" if folder else text

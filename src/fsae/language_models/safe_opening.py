"""Guard for opening models from outside: no library may start a process or ask a question meanwhile."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Python's audit events for a new process and for a question on the terminal.
_REFUSED = {
    "subprocess.Popen": "to start a process",
    "os.system": "to start a process",
    "os.exec": "to start a process",
    "os.fork": "to start a process",
    "os.forkpty": "to start a process",
    "os.posix_spawn": "to start a process",
    "os.spawn": "to start a process",
    "os.startfile": "to start a process",
    "pty.spawn": "to start a process",
    "builtins.input": "to ask a question",
}

_opening = threading.local()
_hook_lock = threading.Lock()
_hooked = False


class RefusedError(RuntimeError):
    """An attempt by a library to start a process or ask a question while a model is opened."""


@contextmanager
def nothing_started() -> Iterator[None]:
    """Let this thread start no process and read no line of the terminal within the block; raise `RefusedError` instead.

    Other threads are not restricted: they upload to MLflow or run other jobs meanwhile.
    """
    _add_hook()
    before = getattr(_opening, "refusing", False)
    _opening.refusing = True
    try:
        yield
    finally:
        _opening.refusing = before


def _add_hook() -> None:
    # An audit hook cannot be removed, so there must be only one.
    global _hooked
    with _hook_lock:
        if not _hooked:
            sys.addaudithook(_audit)
            _hooked = True


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    # Every import and every opened file raises an event.
    if event in _REFUSED and getattr(_opening, "refusing", False):
        raise RefusedError(f"opening a model was about {_REFUSED[event]} ({event}: {str(arguments)[:200]})")

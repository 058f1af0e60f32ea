"""Opening models from outside: nothing is started, nothing is asked, whatever the libraries that open them would do."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Python's own events for a new process and for a question on the terminal.
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
    """Raised where a library was about to do something that opening a model must not do."""


@contextmanager
def nothing_started() -> Iterator[None]:
    """Within the block this thread starts no process and reads no line of the terminal; `RefusedError` otherwise.

    Other threads are free: they deliver to MLflow or run other jobs meanwhile.
    """
    _add_hook()
    before = getattr(_opening, "refusing", False)
    _opening.refusing = True
    try:
        yield
    finally:
        _opening.refusing = before


def _add_hook() -> None:
    # An audit hook stays for good, so that there must be one alone.
    global _hooked
    with _hook_lock:
        if not _hooked:
            sys.addaudithook(_audit)
            _hooked = True


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    # Every import and every opened file comes by here.
    if event in _REFUSED and getattr(_opening, "refusing", False):
        raise RefusedError(f"opening a model was about {_REFUSED[event]} ({event}: {str(arguments)[:200]})")

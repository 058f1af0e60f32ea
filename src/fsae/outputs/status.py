"""`status.json`: the state of a run, readable at any moment, also after a kill."""

import json
import os
import socket
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import psutil

from fsae.credentials import concealed
from fsae.files import write_json
from fsae.outputs.run_folder import RunFolder


class RunState(Enum):
    """The states of a run. `interrupted`: it saved a checkpoint on a signal and can resume. `refused`: its settings
    were wrong and it never started."""

    running = "running"
    finished = "finished"
    failed = "failed"
    interrupted = "interrupted"
    refused = "refused"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The reason why a run ended early: the exception's type and its message."""

    kind: str
    message: str


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run's status. Times are UTC; `host` and `pid` name the process that wrote it.

    Attributes:
        started: when the run was first started, kept over resumes.
        updated: when the status was written.
        ended: when the run stopped; None while it is running.
    """

    state: RunState
    started: datetime
    updated: datetime
    ended: datetime | None
    failure: Failure | None
    host: str
    pid: int

    def is_alive(self) -> bool:
        """Return whether the state is running and, as far as this host can know, the process still exists."""
        if self.state is not RunState.running:
            return False
        if self.host != socket.gethostname():
            return True
        try:
            process = psutil.Process(self.pid)
            # An ended process stays listed until its parent reads its exit status, and after a restart of the machine
            # or container another process may have its number.
            return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= self.updated.timestamp()
        except psutil.Error:
            return False


def mark(folder: Path, state: RunState, failure: Failure | None = None) -> RunStatus:
    """Write the folder's status as of now, keeping the time at which the run first started.

    Raises:
        OSError: the file cannot be written; the earlier status is untouched.
    """
    earlier = read_status(folder)
    now = datetime.now(UTC)
    status = RunStatus(
        state=state,
        started=earlier.started if earlier else now,
        updated=now,
        ended=None if state is RunState.running else now,
        # A library's message may repeat an address or a header.
        failure=failure and replace(failure, message=concealed(failure.message)),
        host=socket.gethostname(),
        pid=os.getpid(),
    )
    write_json(
        RunFolder(folder).status,
        asdict(status)
        | {
            "state": status.state.value,
            "started": status.started.isoformat(),
            "updated": status.updated.isoformat(),
            "ended": status.ended.isoformat() if status.ended else None,
        },
    )
    return status


def read_status(folder: Path) -> RunStatus | None:
    """Return the folder's status, or None if no run has started.

    Raises:
        ValueError: `status.json` does not hold what `mark` writes.
    """
    path = RunFolder(folder).status
    if not path.exists():
        return None
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        return RunStatus(
            state=RunState(written["state"]),
            started=datetime.fromisoformat(written["started"]),
            updated=datetime.fromisoformat(written["updated"]),
            ended=datetime.fromisoformat(written["ended"]) if written["ended"] else None,
            failure=Failure(**written["failure"]) if written["failure"] else None,
            host=written["host"],
            pid=written["pid"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a run's status ({error!r}): restore it, or delete it to start from the beginning"
        ) from error

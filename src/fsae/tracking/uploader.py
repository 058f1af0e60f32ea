"""The process that uploads the folders of one or several runs to MLflow, and the runs' connection to it.

A thread would be too slow: while MLflow's client computes, every call of the training loop that releases the
interpreter lock waits milliseconds to get it back. A separate process costs the run nothing, and it outlives a run that
is killed. Runs in one process share it: MLflow's client takes a few hundred megabytes.
"""

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from fsae.credentials import without_password
from fsae.outputs.run_log import logging_for
from fsae.tracking.mlflow_upload import DeletedExperimentError, MlflowUpload, read_description, reason_of, sync_command

log = logging.getLogger(__name__)

SECONDS_BETWEEN_UPLOADS = 2.0
LONGEST_PAUSE = 15  # in uploads, while MLflow is unreachable
RESTARTS = 3

# Folders that one process uploads at a time: MLflow's pool of connections to a database holds five.
_REQUESTS = threading.BoundedSemaphore(4)


class Uploader:
    """The owner of the process that uploads: sends it the names of folders, and copies its messages to the runs' logs.

    If the process dies it is restarted, at most `RESTARTS` times.

    Args:
        uri: the tracking server or database.
        flush_seconds: how long `finish` waits while nothing is uploaded.
        pause: seconds between uploads.
    """

    def __init__(self, uri: str, flush_seconds: float, pause: float = SECONDS_BETWEEN_UPLOADS) -> None:
        self._uri, self._pause = uri, pause
        self._flush_seconds = flush_seconds
        self._uploads: dict[Path, MlflowUpload] = {}
        self._ended: list[Path] = []
        self._finishing = False
        self._restarts = 0
        # Receives a folder whenever something of it was uploaded, and None once no more messages will come.
        self._arrivals: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._delivered: set[Path] = set()
        # Held while commands are sent, and while the process that reads them is replaced.
        self._sending = threading.Lock()
        self._process = self._started()
        self._listener = threading.Thread(target=self._listen, name="messages of the uploader", daemon=True)
        self._listener.start()

    def _started(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._pause), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # In the environment, since everybody on the machine can read a process's arguments.
            env=os.environ | {"MLFLOW_TRACKING_URI": self._uri},
            # Ctrl-C must not end the uploader: the run still has values to upload.
            start_new_session=True,
        )

    def follow(self, folder: Path) -> None:
        """Upload a described folder from now on."""
        with self._sending:
            self._uploads[folder] = MlflowUpload(folder, self._uri, read_description(folder))
            self._send("follow", folder)

    def end(self, folder: Path) -> None:
        """Upload the end of the folder's run, which is in the folder now; does not wait."""
        with self._sending:
            self._ended.append(folder)
            self._send("end", folder)

    def finish(self) -> None:
        """Wait while values are being uploaded, then log each run's address in MLflow, or what was not uploaded."""
        with self._sending:
            self._finishing = True
            self._send("finish")
        with suppress(queue.Empty):
            while self._arrivals.get(timeout=self._flush_seconds):
                pass
        with self._sending:
            # Prevents a restart.
            self._restarts = RESTARTS
            self._process.kill()
        self._listener.join()
        for folder, upload in self._uploads.items():
            with logging_for(folder):
                if folder in self._delivered:
                    log.info("in MLflow: %s", upload.link)
                    continue
                log.warning(
                    "not in MLflow (%s) yet: %d values and the artifacts. Nothing is lost; %ssend them with: %s",
                    without_password(self._uri),
                    upload.unsent(),
                    f"{upload.obstacle}. Restore it first, then " if upload.obstacle else "",
                    sync_command(folder),
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()

    def _send(self, word: str, folder: Path | None = None) -> None:
        assert self._process.stdin
        # The pipe breaks if the process has died; a new process gets all commands again.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([word, str(folder)]) + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        while True:
            assert self._process.stdout
            for line in self._process.stdout:
                self._receive(line)
            status = self._process.wait()
            if (status == 0 and self._finishing) or not self._restarted(status):
                self._arrivals.put(None)
                return

    def _receive(self, line: str) -> None:
        report = json.loads(line)
        folder = Path(report["folder"])
        upload = self._uploads[folder]
        upload.position, upload.link, upload.obstacle = report["position"], report["link"], report["obstacle"]
        if report["message"]:
            with logging_for(folder):
                log.log(report["level"], "%s", report["message"])
        if report["delivered"]:
            self._delivered.add(folder)
        if report["arrived"]:
            self._arrivals.put(folder)

    def _restarted(self, status: int) -> bool:
        """Replace a process that ended with this status; returns False if there were too many restarts."""
        with self._sending:
            if self._restarts == RESTARTS:
                if not self._finishing:
                    log.warning(
                        "the process that sends values to MLflow ended again (exit status %d) and is not restarted. "
                        "The run continues and keeps them; its last lines state how to send them", status
                    )  # fmt: skip
                return False
            self._restarts += 1
            log.warning("the process that sends values to MLflow ended (exit status %d): it is restarted", status)
            self._process = self._started()
            for folder in self._uploads:
                self._send("follow", folder)
            for folder in self._ended:
                self._send("end", folder)
            if self._finishing:
                self._send("finish")
            return True


def follow(
    upload: MlflowUpload,
    report: Callable[[int, str], None],
    pause: float,
    over: threading.Event,
    is_abandoned: Callable[[], bool],
) -> bool:
    """Upload while the run continues, and its end once it is over; returns whether everything was uploaded.

    While MLflow is unreachable it is tried ever more rarely, at most `LONGEST_PAUSE` pauses apart. The outage and its
    end are reported once each. Once the run is over its process waits, so MLflow is tried after each pause.

    Args:
        report: takes a level of `logging` and a message.
        pause: seconds between uploads.
        over: set when the run is over.
        is_abandoned: returns whether the run was killed, so that no process waits; its end is then tried once.
    """
    failures = 0
    reported_deleted = False

    def attempt() -> bool:
        nonlocal failures, reported_deleted
        ending = over.is_set()
        try:
            with _REQUESTS:
                upload.send_metrics()
                if ending:
                    upload.close()
        # Whatever the error is, the run does not fail; `fsae.sync` can upload it later, and shows the error again.
        except Exception as error:
            failures += 1
            deleted = isinstance(error, DeletedExperimentError)
            upload.obstacle = reason_of(error) if deleted else ""
            if failures == 1 or (deleted and not reported_deleted):
                when = "after that" if deleted else "if it ends before MLflow is back,"
                report(
                    logging.WARNING,
                    f"MLflow ({without_password(upload.uri)}) does not accept the run's values: {reason_of(error)}. "
                    f"The run continues and keeps them; {when} send them with: {sync_command(upload.folder.path)}",
                )
            reported_deleted = deleted
            return False
        upload.obstacle = ""
        report(logging.INFO, f"MLflow ({without_password(upload.uri)}) is back and up to date" if failures else "")
        failures, reported_deleted = 0, False
        return True

    while not over.is_set():
        attempt()
        over.wait(pause * min(2**failures, LONGEST_PAUSE))
        if is_abandoned():
            over.set()
    while not attempt():
        # A deleted experiment is not restored by waiting.
        if is_abandoned() or reported_deleted:
            return False
        time.sleep(pause)
    return True


class Follower:
    """A thread of the process that uploads one folder.

    Args:
        folder: a run's folder, described.
        pause: seconds between uploads.
        run: the id of the process that writes to the folder.
        output: the stream for progress and messages.
    """

    def __init__(self, folder: Path, pause: float, run: int, output: IO[str]) -> None:
        uri = os.environ["MLFLOW_TRACKING_URI"]
        self._upload = MlflowUpload(folder, uri, read_description(folder), lambda: self._report(arrived=True))
        self._output = output
        self._run = run
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._follow, args=(pause,))
        self.thread.start()

    def _follow(self, pause: float) -> None:
        # A closed pipe does not show that the run was killed while a process started by the run holds it open.
        if follow(self._upload, self._report, pause, self.over, lambda: os.getppid() != self._run):
            self._report(arrived=True, delivered=True)

    def _report(
        self, level: int = logging.INFO, message: str = "", arrived: bool = False, delivered: bool = False
    ) -> None:
        upload = self._upload
        report = {
            "folder": str(upload.folder.path),
            "level": level,
            "message": message,
            "position": upload.position,
            "link": upload.link,
            "obstacle": upload.obstacle,
            "arrived": arrived,
            "delivered": delivered,
        }
        # A killed run no longer reads.
        with suppress(BrokenPipeError):
            self._output.write(json.dumps(report) + "\n")


def main() -> None:
    """Upload the folders named on standard input, each until the run is reported over or the input ends."""
    # Standard output carries one JSON object per line and must not carry what a library prints.
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # A scheduler signals every process of a job; only the run decides when this one may stop.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # The run takes precedence if the two share a processor.
    os.nice(10)
    pause, run = float(sys.argv[1]), int(sys.argv[2])
    followers: dict[str, Follower] = {}
    for line in sys.stdin:
        word, folder = json.loads(line)
        if word == "follow":
            followers[folder] = Follower(Path(folder), pause, run, output)
        elif word == "end":
            followers[folder].over.set()
        else:
            # An explicit command, since a worker process forked from the run may hold this pipe open.
            break
    for follower in followers.values():
        follower.over.set()
    # MLflow starts threads of its own, which the interpreter refuses once its main thread has ended.
    for follower in followers.values():
        follower.thread.join()


if __name__ == "__main__":
    main()

"""The process beside one or several runs that carries their folders to MLflow, and the runs' end of it.

A thread would not do: while MLflow's client computes, every call of the training loop that lets go of the interpreter
lock waits milliseconds to get it back. A process costs the run nothing, and it outlives a run that is killed. Runs in
one process share it: MLflow's client takes a few hundred megabytes.
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
from fsae.tracking.mlflow_upload import DeletedExperimentError, MlflowUpload, first_line, read_description, sync_command

log = logging.getLogger(__name__)

SECONDS_BETWEEN_UPLOADS = 2.0
LONGEST_PAUSE = 15  # in uploads, while the store is away
RESTARTS = 3

# Folders that one process uploads at a time: MLflow's pool of connections to a database holds five.
_REQUESTS = threading.BoundedSemaphore(4)


class Uploader:
    """Starts the process, tells it of folders, and passes on what it says to their logs.

    If the process dies it is started again, at most `RESTARTS` times.

    Use it as a context around the runs' trackers: leaving it waits until everything has arrived.

    Args:
        uri: the MLflow store.
        flush_seconds: how long leaving waits while nothing arrives.
    """

    def __init__(self, uri: str, flush_seconds: float) -> None:
        self._uri = uri
        self._flush_seconds = flush_seconds
        self._uploads: dict[Path, MlflowUpload] = {}
        self._ended: list[Path] = []
        self._finishing = False
        self._restarts = 0
        # A folder whenever something of it arrived, and a last None when nothing more will be said.
        self._arrivals: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._delivered: set[Path] = set()
        # Held while words are said, and while the process that hears them is replaced.
        self._speaking = threading.Lock()
        self._process = self._started()
        self._listener = threading.Thread(target=self._listen, name="uploader's words", daemon=True)
        self._listener.start()

    def _started(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(SECONDS_BETWEEN_UPLOADS), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # By environment, as an argument shows the password to everybody on the machine.
            env=os.environ | {"MLFLOW_TRACKING_URI": self._uri},
            # A Ctrl-C is for the run, which then has something left to say.
            start_new_session=True,
        )

    def follow(self, folder: Path) -> None:
        """Upload a described folder from now on."""
        with self._speaking:
            self._uploads[folder] = MlflowUpload(folder, self._uri, read_description(folder))
            self._say("follow", folder)

    def end(self, folder: Path) -> None:
        """Upload how the folder's run ended, which is in it now; does not wait."""
        with self._speaking:
            self._ended.append(folder)
            self._say("end", folder)

    def finish(self) -> None:
        """Have everything sent, as long as something arrives; says where each run is to be seen, or what remains."""
        with self._speaking:
            self._finishing = True
            self._say("finish")
        with suppress(queue.Empty):
            while self._arrivals.get(timeout=self._flush_seconds):
                pass
        with self._speaking:
            # Not to be started again.
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

    def _say(self, word: str, folder: Path | None = None) -> None:
        assert self._process.stdin
        # It breaks if the process has died; the next one is told everything again.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([word, str(folder)]) + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        while True:
            assert self._process.stdout
            for line in self._process.stdout:
                self._hear(line)
            status = self._process.wait()
            if (status == 0 and self._finishing) or not self._restarted(status):
                self._arrivals.put(None)
                return

    def _hear(self, line: str) -> None:
        said = json.loads(line)
        folder = Path(said["folder"])
        upload = self._uploads[folder]
        upload.position, upload.link, upload.obstacle = said["position"], said["link"], said["obstacle"]
        if said["message"]:
            with logging_for(folder):
                log.log(said["level"], "%s", said["message"])
        if said["delivered"]:
            self._delivered.add(folder)
        if said["arrived"]:
            self._arrivals.put(folder)

    def _restarted(self, status: int) -> bool:
        """Start another process in the place of one that ended with this status; returns False where it is given up."""
        with self._speaking:
            if self._restarts == RESTARTS:
                if not self._finishing:
                    log.warning(
                        "the process that sends values to MLflow ended again (exit status %d) and is not started any "
                        "more. The run goes on and keeps them; how to send them is said at its end", status
                    )  # fmt: skip
                return False
            self._restarts += 1
            log.warning("the process that sends values to MLflow ended (exit status %d): it is started again", status)
            self._process = self._started()
            for folder in self._uploads:
                self._say("follow", folder)
            for folder in self._ended:
                self._say("end", folder)
            if self._finishing:
                self._say("finish")
            return True


def follow(
    upload: MlflowUpload,
    say: Callable[[int, str], None],
    pause: float,
    over: threading.Event,
    is_abandoned: Callable[[], bool],
) -> bool:
    """Upload while the run goes on, and its end once it is over; returns whether everything arrived.

    While the store is away it is tried ever more rarely, at most `LONGEST_PAUSE` pauses apart. That it went, and that
    it is back, is said once each. Once the run is over it waits for what is tried, so that is tried after each pause.

    Args:
        say: takes a level of `logging` and a message.
        pause: seconds between uploads.
        over: set when the run is over.
        is_abandoned: whether nobody waits any more: the run was killed. Its end is tried once.
    """
    failures = 0
    told_deleted = False

    def attempt() -> bool:
        nonlocal failures, told_deleted
        ending = over.is_set()
        try:
            with _REQUESTS:
                upload.send_metrics()
                if ending:
                    upload.close()
        # Whatever it is, it is not the run's failure; `fsae.sync` remains, and shows it again.
        except Exception as error:
            failures += 1
            deleted = isinstance(error, DeletedExperimentError)
            upload.obstacle = first_line(error) if deleted else ""
            if failures == 1 or (deleted and not told_deleted):
                when = "after that" if deleted else "if it ends before MLflow is back,"
                say(
                    logging.WARNING,
                    f"MLflow ({without_password(upload.uri)}) does not take the run's values: {first_line(error)}. "
                    f"The run goes on and keeps them; {when} send them with: {sync_command(upload.folder.path)}",
                )
            told_deleted = deleted
            return False
        upload.obstacle = ""
        say(logging.INFO, f"MLflow ({without_password(upload.uri)}) is back and up to date" if failures else "")
        failures, told_deleted = 0, False
        return True

    while not over.is_set():
        attempt()
        over.wait(pause * min(2**failures, LONGEST_PAUSE))
        if is_abandoned():
            over.set()
    while not attempt():
        # An experiment that was deleted does not come back by itself.
        if is_abandoned() or told_deleted:
            return False
        time.sleep(pause)
    return True


class Follower:
    """Within the process: uploads one folder in a thread of its own.

    Args:
        folder: a run's folder, described.
        pause: seconds between uploads.
        run: the process that writes to the folder.
        words: where it is said how far it came.
    """

    def __init__(self, folder: Path, pause: float, run: int, words: IO[str]) -> None:
        uri = os.environ["MLFLOW_TRACKING_URI"]
        self._upload = MlflowUpload(folder, uri, read_description(folder), lambda: self._say(arrived=True))
        self._words = words
        self._run = run
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._follow, args=(pause,))
        self.thread.start()

    def _follow(self, pause: float) -> None:
        # The run's end does not show in the pipe while another process that it started holds that open.
        if follow(self._upload, self._say, pause, self.over, lambda: os.getppid() != self._run):
            self._say(arrived=True, delivered=True)

    def _say(
        self, level: int = logging.INFO, message: str = "", arrived: bool = False, delivered: bool = False
    ) -> None:
        upload = self._upload
        told = {
            "folder": str(upload.folder.path),
            "level": level,
            "message": message,
            "position": upload.position,
            "link": upload.link,
            "obstacle": upload.obstacle,
            "arrived": arrived,
            "delivered": delivered,
        }
        # A run that was killed no longer listens.
        with suppress(BrokenPipeError):
            self._words.write(json.dumps(told) + "\n")


def main() -> None:
    """Follow the folders that standard input names, each until it says that the run is over, or until it ends."""
    # Standard output carries one JSON object a line and must not carry what a library prints.
    words = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # A scheduler signals every process of a job; when this one may stop is the run's to say.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # The run comes first wherever the two share a processor.
    os.nice(10)
    pause, run = float(sys.argv[1]), int(sys.argv[2])
    followers: dict[str, Follower] = {}
    for line in sys.stdin:
        word, folder = json.loads(line)
        if word == "follow":
            followers[folder] = Follower(Path(folder), pause, run, words)
        elif word == "end":
            followers[folder].over.set()
        else:
            # Said in words: a worker process forked from the run may hold this pipe open.
            break
    for follower in followers.values():
        follower.over.set()
    # MLflow starts threads of its own, which the interpreter refuses once its main thread is at its end.
    for follower in followers.values():
        follower.thread.join()


if __name__ == "__main__":
    main()

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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from fsae.tracking.credentials import without_password
from fsae.tracking.mlflow_upload import MlflowUpload, first_line, read_description, sync_command
from fsae.tracking.run_log import speaking_for

log = logging.getLogger(__name__)

SECONDS_BETWEEN_UPLOADS = 2.0
LONGEST_PAUSE = 15  # in uploads, while the store is away

# Folders that one process uploads at a time: MLflow's pool of connections to a database holds five.
_REQUESTS = threading.BoundedSemaphore(4)


class Uploader:
    """Starts the process, tells it of folders, and passes on what it says to their logs.

    Use it as a context around the runs' trackers: leaving it waits until everything has arrived.

    Args:
        uri: the MLflow store.
        flush_seconds: how long leaving waits while nothing arrives.
    """

    def __init__(self, uri: str, flush_seconds: float) -> None:
        self._uri = uri
        self._flush_seconds = flush_seconds
        self._uploads: dict[Path, MlflowUpload] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(SECONDS_BETWEEN_UPLOADS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # By environment, as an argument shows the password to everybody on the machine.
            env=os.environ | {"MLFLOW_TRACKING_URI": uri},
            # A Ctrl-C is for the run, which then has something left to say.
            start_new_session=True,
        )
        # An item for each folder that is done with, and a last one when nothing more will be said.
        self._arrivals: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, name="uploader's words", daemon=True)
        self._listener.start()

    def follow(self, folder: Path) -> None:
        """Upload a described folder from now on."""
        self._uploads[folder] = MlflowUpload(folder, self._uri, read_description(folder))
        self._say("follow", folder)

    def end(self, folder: Path) -> None:
        """Upload how the folder's run ended, which is in it now; does not wait."""
        self._say("end", folder)

    def finish(self) -> None:
        """Have everything sent, as long as something arrives; says where each run is to be seen, or what remains."""
        self._say("finish")
        arrived: set[Path] = set()
        with suppress(queue.Empty):
            while folder := self._arrivals.get(timeout=self._flush_seconds):
                arrived.add(folder)
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for folder, upload in self._uploads.items():
            with speaking_for(folder):
                if folder in arrived:
                    log.info("in MLflow: %s", upload.link)
                    continue
                log.warning(
                    "not in MLflow (%s) yet: %d values and the artifacts. Nothing is lost; send them with: %s",
                    without_password(self._uri),
                    upload.unsent(),
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
        # It breaks if the process has died; what it did not send is told at the end.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([word, str(folder)]) + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            said = json.loads(line)
            folder = Path(said["folder"])
            upload = self._uploads[folder]
            upload.position, upload.link = said["position"], said["link"]
            if said["message"]:
                with speaking_for(folder):
                    log.log(said["level"], "%s", said["message"])
            if said["arrived"]:
                self._arrivals.put(folder)
        self._arrivals.put(None)


def follow(upload: MlflowUpload, say: Callable[[int, str], None], pause: float, over: threading.Event) -> bool:
    """Upload while the run goes on, and its end once it is over; returns whether everything arrived.

    While the store is away it is tried ever more rarely, at most `LONGEST_PAUSE` pauses apart. That it went, and that
    it is back, is said once each.

    Args:
        say: takes a level of `logging` and a message.
        pause: seconds between uploads.
        over: set when the run is over.
    """
    failures = 0

    def attempt() -> bool:
        nonlocal failures
        try:
            with _REQUESTS:
                upload.send_metrics()
                if over.is_set():
                    upload.close()
        # Whatever it is, it is not the run's failure; `fsae.sync` remains, and shows it again.
        except Exception as error:
            failures += 1
            if failures == 1:
                say(
                    logging.WARNING,
                    f"MLflow ({without_password(upload.uri)}) does not take the run's values: {first_line(error)}. "
                    "The run goes on and keeps them; if it ends before MLflow is back, send them with: "
                    + sync_command(upload.folder.path),
                )
            return False
        say(logging.INFO, f"MLflow ({without_password(upload.uri)}) is back and up to date" if failures else "")
        failures = 0
        return True

    while not over.is_set():
        attempt()
        over.wait(pause * min(2**failures, LONGEST_PAUSE))
    return attempt()


class Follower:
    """Within the process: uploads one folder in a thread of its own.

    Args:
        folder: a run's folder, described.
        pause: seconds between uploads.
        words: where it is said how far it came.
    """

    def __init__(self, folder: Path, pause: float, words: IO[str]) -> None:
        self._upload = MlflowUpload(folder, os.environ["MLFLOW_TRACKING_URI"], read_description(folder))
        self._words = words
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._follow, args=(pause,))
        self.thread.start()

    def _follow(self, pause: float) -> None:
        arrived = follow(self._upload, self._say, pause, self.over)
        self._say(logging.INFO, "", arrived)

    def _say(self, level: int, message: str, arrived: bool = False) -> None:
        upload = self._upload
        told = {
            "folder": str(upload.folder.path),
            "level": level,
            "message": message,
            "position": upload.position,
            "link": upload.link,
            "arrived": arrived,
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
    pause = float(sys.argv[1])
    followers: dict[str, Follower] = {}
    for line in sys.stdin:
        word, folder = json.loads(line)
        if word == "follow":
            followers[folder] = Follower(Path(folder), pause, words)
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

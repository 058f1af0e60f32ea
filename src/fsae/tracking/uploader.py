"""The process beside a run that carries its folder to MLflow, and the run's end of it.

A thread would not do: while MLflow's client computes, every call of the training loop that lets go of the interpreter
lock waits milliseconds to get it back. A process costs the run nothing, and it outlives a run that is killed.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fsae.tracking.mlflow_upload import MlflowUpload, first_line, read_description, sync_command
from fsae.tracking.store import without_password

log = logging.getLogger(__name__)

SECONDS_BETWEEN_UPLOADS = 2.0
LONGEST_PAUSE = 15  # in uploads, while the store is away


class Uploader:
    """Starts the process for one described folder, and passes on what it says to the run's log.

    Args:
        folder: the run's folder.
        uri: the MLflow store.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self._upload = MlflowUpload(folder, uri, read_description(folder))
        self._folder = folder
        self._uri = uri
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), str(SECONDS_BETWEEN_UPLOADS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # By environment, as an argument shows the password to everybody on the machine.
            env=os.environ | {"MLFLOW_TRACKING_URI": uri},
            # A Ctrl-C is for the run, which then has something left to say.
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, name="uploader's words", daemon=True)
        self._listener.start()

    def finish(self, seconds: float) -> None:
        """Have everything sent, waiting at most `seconds`; says where the run is to be seen, or what remains."""
        assert self._process.stdin
        # Said in words: a worker process forked from the run may hold this pipe open. It breaks if ours has died.
        with suppress(BrokenPipeError):
            self._process.stdin.write("finish\n")
            self._process.stdin.flush()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        if self._process.returncode == 0:
            log.info("in MLflow: %s", self._upload.link)
            return
        log.warning(
            "not in MLflow (%s) yet: %d values and the artifacts. Nothing is lost; send them with: %s",
            without_password(self._uri),
            self._upload.unsent(),
            sync_command(self._folder),
        )

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            said = json.loads(line)
            self._upload.position = said["position"]
            self._upload.link = said["link"]
            if said["message"]:
                log.log(said["level"], "%s", said["message"])


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


def main() -> int:
    """Follow the run in the folder given as the first argument until standard input ends or speaks."""
    # Standard output carries one JSON object a line and must not carry what a library prints.
    words = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # A scheduler signals every process of a job; when this one may stop is the run's to say.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The run comes first wherever the two share a processor.
    os.nice(10)
    folder, pause = Path(sys.argv[1]), float(sys.argv[2])
    upload = MlflowUpload(folder, os.environ["MLFLOW_TRACKING_URI"], read_description(folder))

    def say(level: int, message: str) -> None:
        told = {"level": level, "message": message, "position": upload.position, "link": upload.link}
        # A run that was killed no longer listens.
        with suppress(BrokenPipeError):
            words.write(json.dumps(told) + "\n")

    over = threading.Event()

    def wait_for_the_run() -> None:
        sys.stdin.readline()
        over.set()

    threading.Thread(target=wait_for_the_run, daemon=True).start()
    return 0 if follow(upload, say, pause, over) else 1


if __name__ == "__main__":
    sys.exit(main())

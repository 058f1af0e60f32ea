import logging
import threading

from fsae.tracking.mlflow_upload import DeletedExperimentError, MlflowUpload
from fsae.tracking.uploader import LONGEST_PAUSE, follow


class Over(threading.Event):
    """An event that is set after `after` pauses; it records their lengths."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        if len(self.pauses) == self.after:
            self.set()
        return self.is_set()


class Upload(MlflowUpload):
    """An upload that follows a script: True accepts values, False raises."""

    def __init__(self, script: list[bool]) -> None:
        self.uri = "http://host"
        self.script = iter(script)
        self.closed = 0
        self.error: Exception = ConnectionError("refused\nwith pages of detail")

        class Folder:
            path = "run"

        self.folder = Folder()  # pyright: ignore

    def send_metrics(self) -> int:
        if not next(self.script):
            raise self.error
        return 1

    def close(self) -> bool:
        self.closed += 1
        return True


def test_follow_reports_an_outage_and_its_end_once_each() -> None:
    reports: list[tuple[int, str]] = []
    upload = Upload([True, False, False, False, True, True, True])
    over = Over(after=6)
    assert follow(upload, lambda level, message: reports.append((level, message)), 2.0, over, over.is_set)
    shown = [(level, message) for level, message in reports if message]
    assert [level for level, _ in shown] == [logging.WARNING, logging.INFO]
    assert "MLflow (http://host) does not accept the run's values: refused. The run continues" in shown[0][1]
    assert "python -m fsae.sync run" in shown[0][1]
    assert shown[1][1] == "MLflow (http://host) is back and up to date"
    # The pause doubles after each failure and is reset by a success.
    assert over.pauses == [2.0, 4.0, 8.0, 16.0, 2.0, 2.0]
    assert upload.closed == 1


def test_follow_tries_an_unreachable_server_ever_more_rarely_and_once_at_the_end() -> None:
    reports: list[str] = []
    upload = Upload([False] * 9)
    over = Over(after=8)
    assert not follow(upload, lambda level, message: reports.append(message), 2.0, over, over.is_set)
    assert over.pauses == [4.0, 8.0, 16.0] + [2.0 * LONGEST_PAUSE] * 5
    assert len(reports) == 1
    assert upload.closed == 0
    assert next(upload.script, None) is None


def test_follow_retries_the_end_while_the_run_waits() -> None:
    upload, over = Upload([False, False, False, True]), threading.Event()
    over.set()
    assert follow(upload, lambda level, message: None, 0.001, over, lambda: False)
    assert upload.closed == 1


def test_follow_tries_the_end_of_a_killed_run_once() -> None:
    upload = Upload([True, False, True])
    assert not follow(upload, lambda level, message: None, 0.001, threading.Event(), lambda: True)
    assert next(upload.script)


def test_follow_reports_a_deleted_experiment_at_once_and_does_not_wait() -> None:
    reports: list[str] = []
    upload, over = Upload([True, False, False, False]), Over(after=2)
    upload.error = DeletedExperimentError("mine", "7", "http://host")
    assert not follow(upload, lambda level, message: reports.append(message), 2.0, over, lambda: False)
    (shown,) = filter(None, reports)
    assert "tracking.experiment=mine: this experiment was deleted in MLflow; restore it with" in shown
    assert "experiments restore -x 7`" in shown
    # For the last line of the run's log.
    assert upload.obstacle == str(upload.error)
    assert "; after that send them with: " in shown
    # Two attempts while the run continued, one at its end.
    assert next(upload.script, None) is False

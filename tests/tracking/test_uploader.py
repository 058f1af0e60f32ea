import logging
import threading

from fsae.tracking.mlflow_upload import DeletedExperimentError, MlflowUpload
from fsae.tracking.uploader import LONGEST_PAUSE, follow


class Over(threading.Event):
    """The run ends when `after` pauses have been waited; keeps how long each was."""

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
    """Answers as the script says: True takes what is sent, False is away."""

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


def test_an_outage_is_told_once_and_so_is_its_end() -> None:
    said: list[tuple[int, str]] = []
    upload = Upload([True, False, False, False, True, True, True])
    over = Over(after=6)
    assert follow(upload, lambda level, message: said.append((level, message)), 2.0, over, over.is_set)
    told = [(level, message) for level, message in said if message]
    assert [level for level, _ in told] == [logging.WARNING, logging.INFO]
    assert "MLflow (http://host) does not take the run's values: refused. The run goes on" in told[0][1]
    assert "python -m fsae.sync run" in told[0][1]
    assert told[1][1] == "MLflow (http://host) is back and up to date"
    # Twice as long after each failure, at once as before after a success.
    assert over.pauses == [2.0, 4.0, 8.0, 16.0, 2.0, 2.0]
    assert upload.closed == 1


def test_a_store_that_stays_away_is_asked_ever_more_rarely_and_once_at_the_end() -> None:
    said: list[str] = []
    upload = Upload([False] * 9)
    over = Over(after=8)
    assert not follow(upload, lambda level, message: said.append(message), 2.0, over, over.is_set)
    assert over.pauses == [4.0, 8.0, 16.0] + [2.0 * LONGEST_PAUSE] * 5
    assert len(said) == 1
    assert upload.closed == 0
    assert next(upload.script, None) is None


def test_the_end_is_tried_until_it_arrives_while_somebody_waits() -> None:
    upload, over = Upload([False, False, False, True]), threading.Event()
    over.set()
    assert follow(upload, lambda level, message: None, 0.001, over, lambda: False)
    assert upload.closed == 1


def test_the_end_of_a_killed_run_is_tried_once() -> None:
    upload = Upload([True, False, True])
    assert not follow(upload, lambda level, message: None, 0.001, threading.Event(), lambda: True)
    assert next(upload.script)


def test_a_deleted_experiment_is_told_at_once_and_not_waited_for() -> None:
    said: list[str] = []
    upload, over = Upload([True, False, False, False]), Over(after=2)
    upload.error = DeletedExperimentError("mine", "7", "http://host")
    assert not follow(upload, lambda level, message: said.append(message), 2.0, over, lambda: False)
    (told,) = filter(None, said)
    assert "tracking.experiment=mine: this experiment was deleted in MLflow; restore it with" in told
    assert "experiments restore -x 7`" in told
    # For the last line of the run's log.
    assert upload.obstacle == str(upload.error)
    assert "; after that send them with: " in told
    # Two while the run went on, one at its end.
    assert next(upload.script, None) is False

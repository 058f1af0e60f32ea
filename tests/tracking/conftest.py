"""A described run folder, and MLflow stores to log it to: SQLite files and a server on loopback."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsae.tracking.mlflow_upload import RunDescription, describe_run
from fsae.tracking.store import create_database


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, as the migration takes seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    create_database(path)
    return path


@pytest.fixture
def sqlite_uri(fresh_database: Path, tmp_path: Path) -> str:
    outputs = tmp_path / "outputs"
    outputs.mkdir(exist_ok=True)
    shutil.copy(fresh_database, outputs / "mlflow.db")
    return f"sqlite:///{outputs / 'mlflow.db'}"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs" / "runs" / "one run"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def describe(run_folder: Path, tmp_path: Path) -> Callable[..., RunDescription]:
    def describe_for(uri: str, **changes: object) -> RunDescription:
        given = {
            "experiment": "fsae",
            "run_name": "gated",
            "params": {"arch.name": "gated", "seed": 3},
            "tags": {"fsae.host": "here"},
        }
        return describe_run(run_folder, uri=uri, outputs=tmp_path / "outputs", **(given | changes))  # pyright: ignore

    return describe_for


class Server:
    """An MLflow server that can be killed and started again on the same port and database."""

    def __init__(self, database: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = database
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self.database.parent / "served")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.database.parent,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
                start_new_session=True,
            )

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(self._log.read_text())

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(fresh_database: Path, tmp_path: Path) -> Iterator[Server]:
    place = tmp_path / "server"
    place.mkdir()
    server = Server(Path(shutil.copy(fresh_database, place / "mlflow.db")), place / "server.log")
    yield server
    server.kill()

"""A described run folder, SQLite files to log it to, and a tracking server on loopback."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsae.tracking.mlflow_upload import RunDescription, describe_run
from fsae.tracking.server import create_database
from tests.tracking.mlflow_server import Server


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is created once per session, as the migration takes seconds."""
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


@pytest.fixture
def server(fresh_database: Path, tmp_path: Path) -> Iterator[Server]:
    place = tmp_path / "server"
    place.mkdir()
    server = Server(Path(shutil.copy(fresh_database, place / "mlflow.db")), place / "server.log")
    yield server
    server.kill()

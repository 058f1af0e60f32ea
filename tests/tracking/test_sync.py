import subprocess
import sys
from pathlib import Path

import pytest

from fsae.commands.sync import main
from fsae.outputs.metric_log import MetricLog
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import RunState, mark
from fsae.tracking.server import python_command
from tests.tracking.mlflow_runs import only_run
from tests.tracking.trackers import Describe


def test_sync_uploads_the_other_folders_if_one_is_wrong(
    sqlite_uri: str, run_folder: Path, describe: Describe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    describe(sqlite_uri)
    MetricLog(RunFolder(run_folder).metrics).append({"a": 1.0}, step=1)
    mark(run_folder, RunState.running)
    (tmp_path / "other").mkdir()
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "other"), str(run_folder)]) == 2
    printed = capfd.readouterr()
    assert printed.err.splitlines() == [
        f"{tmp_path / 'nowhere'}: no such folder",
        f"{tmp_path / 'other'}: {tmp_path / 'other'} is not a run's folder: it holds no tracking.json",
    ]
    assert "1 value sent, its end will follow, the run is not over" in printed.out
    assert f"compare: {python_command()} -m mlflow ui --backend-store-uri {sqlite_uri} --host 127.0.0.1" in printed.out


def test_sync_uploads_to_another_database_by_option(
    sqlite_uri: str, run_folder: Path, describe: Describe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    describe("http://127.0.0.1:9")
    MetricLog(RunFolder(run_folder).metrics).append({"a": 1.0}, step=1)
    mark(run_folder, RunState.finished)
    assert main([str(run_folder), "--tracking-uri", "mlruns"]) == 2
    assert "--tracking-uri=mlruns" in capfd.readouterr().err
    assert main([str(run_folder), "--tracking-uri", sqlite_uri]) == 0
    # The artifacts go to that database's folder, not to the working directory.
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert len(list((tmp_path / "outputs" / "mlartifacts").rglob("status.json"))) == 1
    assert only_run(sqlite_uri).data.metrics == {"a": 1.0}


def test_sync_takes_a_password_from_the_environment_and_does_not_show_it(
    run_folder: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def refuse(uri: str) -> None:
        opened.append(uri)
        raise RuntimeError("closed\nfor today")

    monkeypatch.setattr("fsae.tracking.mlflow_upload.open_client", refuse)
    describe("https://me:secret@host")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host")
    assert main([str(run_folder)]) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@elsewhere")
    assert main([str(run_folder)]) == 1
    assert opened == ["https://me:secret@host", "https://host"]
    printed = capfd.readouterr().err
    assert "MLflow (https://host) does not accept it: closed." in printed
    assert "secret" not in printed


def test_sync_works_as_a_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fsae.sync", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip() == f"{tmp_path}: {tmp_path} is not a run's folder: it holds no tracking.json"

import os
import shlex
import sys
from pathlib import Path

import pytest

from fsae.tracking.mlflow_upload import find_or_create_experiment
from fsae.tracking.server import (
    artifact_root,
    as_literal,
    checked_uri,
    open_client,
    python_command,
    resolve_uri,
    run_link,
    shell_command,
    sqlite_file,
    ui_command,
    without_password,
)


def test_the_uri_comes_from_the_setting_then_the_environment_then_the_outputs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_uri(None, Path("outputs")) == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert resolve_uri(None, tmp_path) == "http://127.0.0.1:5000"
    assert resolve_uri("postgresql+psycopg2://me@host/name", tmp_path) == "postgresql+psycopg2://me@host/name"


def test_a_relative_sqlite_path_is_made_absolute(tmp_path: Path) -> None:
    assert checked_uri("sqlite:///my.db", "here") == f"sqlite:///{tmp_path}/my.db"
    assert checked_uri("sqlite:////there/my.db?timeout=9", "here") == "sqlite:////there/my.db?timeout=9"


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "/tmp/mlruns", "./mlruns", "s3://bucket", "C:\\runs"])
def test_mlflows_file_store_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI=.*set a server .* or a database"):
        resolve_uri(None, tmp_path)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"tracking\.uri=.*name a file"):
        checked_uri(uri, "tracking.uri")


def test_artifacts_are_kept_next_to_the_database_unless_a_server_keeps_them(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    assert artifact_root("sqlite:////there/mlflow.db", outputs) == Path("/there/mlartifacts")
    assert artifact_root("postgresql://host/name", outputs) == outputs / "mlartifacts"
    assert artifact_root("http://127.0.0.1:5000", outputs) is None


def test_passwords_are_not_shown() -> None:
    uri = "postgresql://me:se:cret@host:5432/name?sslmode=require"
    assert without_password(uri) == "postgresql://me@host:5432/name?sslmode=require"
    assert "cret" not in ui_command(uri)
    assert ui_command("https://me:secret@host/mlflow") == "https://host/mlflow"
    assert without_password("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_python_command_is_relative_to_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my env" / "python"))
    assert python_command() == "'my env/python'"
    monkeypatch.setattr(sys, "executable", "/elsewhere/python")
    assert python_command() == "/elsewhere/python"


def test_ui_command_opens_the_server_or_database() -> None:
    assert (
        ui_command("sqlite:////my runs/mlflow.db")
        == f"{python_command()} -m mlflow ui --backend-store-uri 'sqlite:////my runs/mlflow.db' --host 127.0.0.1"
    )
    assert (
        run_link("http://host:1/", "2", "abc") == "http://host:1/#/experiments/2/runs/abc?workflowType=machine_learning"
    )
    assert run_link("sqlite:////a.db", "2", "abc").startswith("http://127.0.0.1:5000/#/experiments/2/")


def test_a_database_is_created_in_a_folder_of_any_name_and_by_the_umask(tmp_path: Path) -> None:
    outputs = tmp_path / "a%20b?c#d;e&f'g=h ü%" / "outputs"
    uri = resolve_uri(None, outputs)
    before = os.umask(0o002)
    try:
        store = open_client(uri)
    finally:
        os.umask(before)
    assert [experiment.name for experiment in store.search_experiments()] == ["Default"]
    assert sqlite_file(uri) == outputs / "mlflow.db"
    assert (outputs / "mlflow.db").stat().st_mode & 0o777 == 0o664
    assert [path.name for path in tmp_path.iterdir()] == ["a%20b?c#d;e&f'g=h ü%"]
    # MLflow reads the address of the artifacts as that folder.
    root = artifact_root(uri, outputs)
    assert root is not None
    experiment = find_or_create_experiment(store, "fsae", uri, outputs)
    run = store.create_run(experiment, tags={"fsae.sweep": "it's"})
    store.log_text(run.info.run_id, "text", "file.txt")
    assert [path.name for path in root.rglob("*.txt")] == ["file.txt"]
    (found,) = store.search_runs([experiment], "tags.`fsae.sweep` = " + as_literal("it's"))
    assert found.info.run_id == run.info.run_id


def test_a_typed_address_means_what_sqlalchemy_reads() -> None:
    assert sqlite_file(checked_uri("sqlite:////a%20b/m.db?timeout=9", "here")) == Path("/a b/m.db")
    assert checked_uri("sqlite:////a%2520b/m.db?timeout=9", "here") == "sqlite+pysqlite:////a%2520b/m.db?timeout=9"
    assert sqlite_file("sqlite+pysqlite:////a%2520b/m.db?timeout=9") == Path("/a%20b/m.db")


def test_as_literal_refuses_both_kinds_of_quotation_marks() -> None:
    assert (as_literal("plain"), as_literal("it's"), as_literal('a "b"')) == ("'plain'", '"it\'s"', "'a \"b\"'")
    with pytest.raises(ValueError, match="both kinds of quotation marks"):
        as_literal('it\'s "so"')


def test_shell_command_can_be_pasted() -> None:
    command = shell_command("resume", Path("/a b/it's $HOME"))
    assert shlex.split(command)[-2:] == ["fsae.resume", "/a b/it's $HOME"]


def test_a_half_made_database_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db.partial").write_bytes(b"half of a database")
    store = open_client(f"sqlite:///{tmp_path}/mlflow.db")
    assert [experiment.name for experiment in store.search_experiments()] == ["Default"]

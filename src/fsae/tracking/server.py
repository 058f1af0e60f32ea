"""The tracking server or database that a run is logged to: its address, its client, and links for people."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlencode

from fsae.credentials import VARIABLE, for_client, split_address, with_password, without_password
from fsae.files import replacing

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVER_SCHEMES = ("http", "https")
DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")

# One request fails fast instead of blocking the uploader for minutes; the uploader retries by itself.
MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def resolve_uri(setting: str | None, outputs: Path) -> str:
    """Return the URI to log to: the setting, else MLFLOW_TRACKING_URI, else `outputs`/mlflow.db as an absolute path.

    A setting holds no password: if MLFLOW_TRACKING_URI is the same address with a password, it is used instead.

    Raises:
        ValueError: the URI is neither a tracking server nor a database.
    """
    if setting:
        return with_password(checked_uri(setting, "tracking.uri"))
    if inherited := os.environ.get("MLFLOW_TRACKING_URI"):
        return checked_uri(inherited, "MLFLOW_TRACKING_URI")
    return _sqlite_uri(outputs.absolute() / "mlflow.db")


def checked_uri(uri: str, origin: str) -> str:
    """Return the URI with an absolute SQLite path, so that it means the same in a job with another working directory.

    Raises:
        ValueError: the URI, which came from `origin`, is neither a tracking server nor a database.
    """
    scheme = _scheme(uri)
    try:
        split_address(uri)
    except ValueError as error:
        raise ValueError(f"{origin}={without_password(uri)}: {error}") from None
    if scheme not in SERVER_SCHEMES + DATABASE_SCHEMES:
        raise ValueError(
            f"{origin}={without_password(uri)}: MLflow no longer maintains tracking in plain files; set a server "
            "(http://127.0.0.1:5000) or a database (sqlite:////absolute/mlflow.db, postgresql://user@host/name)"
        )
    if scheme != "sqlite":
        return uri
    dialect, found, rest = uri.partition(":///")
    path, mark, query = rest.partition("?")
    if not found or path in ("", ":memory:"):
        raise ValueError(f"{origin}={uri}: name a file, as in sqlite:////absolute/path/mlflow.db")
    return f"{_sqlite_uri(Path(unquote(path)).absolute(), dialect)}{mark}{query}"


def artifact_root(uri: str, outputs: Path) -> Path | None:
    """Return where artifacts are kept: next to a SQLite file, in `outputs` for another database; None for a server."""
    if _scheme(uri) in SERVER_SCHEMES:
        return None
    database = sqlite_file(uri)
    return (database.parent if database else outputs.absolute()) / "mlartifacts"


def ui_command(uri: str) -> str:
    """Return how to open the MLflow UI: a shell command for a database, the address for a server."""
    if _scheme(uri) in SERVER_SCHEMES:
        return without_password(uri)
    bare = without_password(uri)
    address = shlex.quote(uri) if bare == uri else f'"${VARIABLE}"'
    return f"{python_command()} -m mlflow ui --backend-store-uri {address} --host 127.0.0.1"


def python_command() -> str:
    """Return this Python's path as a shell finds it from here, without activating the environment."""
    here, python = Path.cwd(), Path(sys.executable)
    return shlex.quote(str(python.relative_to(here) if python.is_relative_to(here) else python))


def as_literal(text: str) -> str:
    """Return the text as a literal of MLflow's filters, which cannot contain both kinds of quotation marks.

    Raises:
        ValueError: the text has both.
    """
    if "'" in text and '"' in text:
        raise ValueError(f"MLflow cannot search for {text}, which has both kinds of quotation marks")
    return f'"{text}"' if "'" in text else f"'{text}'"


def shell_command(module: str, *arguments: str | Path) -> str:
    """Return `python -m fsae.MODULE ARGUMENTS...`, ready to be pasted into a shell."""
    return f"{python_command()} -m fsae.{module} {shlex.join(map(str, arguments))}"


def run_link(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page; for a database, in the UI that `ui_command` starts."""
    # Without the workflow type the page opens in the mode for language-model applications.
    return f"{_ui_address(uri)}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def jobs_filter(sweep: str) -> str:
    """Return MLflow's filter for the runs of a sweep, without the sweep's summary run."""
    return f"tags.`fsae.sweep` = {as_literal(sweep)} and tags.`fsae.kind` != 'sweep'"


def compare_link(uri: str, experiment_id: str, sweep: str) -> str:
    """Return the address of the charts of a sweep's runs; for a database, in the UI that `ui_command` starts."""
    query = {
        "workflowType": "machine_learning",
        "searchFilter": jobs_filter(sweep),
        "startTime": "ALL",
        "compareRunsMode": "CHART",
    }
    return f"{_ui_address(uri)}/#/experiments/{experiment_id}/runs?{urlencode(query, quote_via=quote)}"


def shared_view_key(sweep: str) -> str:
    """Return the key under which the experiment stores the view of the table of a sweep's runs."""
    return f"fsae-{hashlib.sha256(sweep.encode()).hexdigest()[:12]}"


def table_link(uri: str, experiment_id: str, sweep: str) -> str:
    """Return the address of the table of a sweep's runs, with the columns that `SweepRun` chose."""
    # With any other search parameter MLflow would ignore the key.
    query = {"workflowType": "machine_learning", "viewStateShareKey": shared_view_key(sweep)}
    return f"{_ui_address(uri)}/#/experiments/{experiment_id}/runs?{urlencode(query, quote_via=quote)}"


def open_client(uri: str) -> MlflowClient:
    """Return a client for the URI; a missing SQLite file is created first. Imports MLflow (2 s).

    Raises:
        mlflow.exceptions.MlflowException: the server or database cannot be opened.
    """
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    database = sqlite_file(uri)
    if database and not database.exists():
        create_database(database)
    return MlflowClient(tracking_uri=for_client(uri))


def create_database(path: Path) -> None:
    """Create an MLflow SQLite file, unless it exists; any number of processes may try at once.

    If several processes start MLflow's own migration of an empty file it fails in all but one, and a kill during it
    leaves a file that never opens again. Therefore one process at a time makes the file under another name.
    """
    import logging

    from filelock import FileLock
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists():
            return
        with replacing(path) as unfinished:
            # A killed process may have left half of one.
            unfinished.unlink(missing_ok=True)
            # SQLite would create the file without write permission for the group, whatever the umask allows.
            unfinished.touch()
            MlflowClient(tracking_uri=_sqlite_uri(unfinished)).search_experiments(max_results=1)


def _ui_address(uri: str) -> str:
    return without_password(uri).rstrip("/") if _scheme(uri) in SERVER_SCHEMES else "http://127.0.0.1:5000"


def _sqlite_uri(path: Path, dialect: str = "sqlite") -> str:
    """Return the address of a SQLite file with any path: SQLAlchemy reads %41 as A, and ? as the end of the path."""
    quoted = re.sub("[%?#]", lambda found: quote(found[0]), str(path))
    # For a plain sqlite:/// MLflow creates the parent folder from the quoted path. Naming a driver prevents that.
    if dialect == "sqlite" and quoted != str(path):
        dialect = "sqlite+pysqlite"
    return f"{dialect}:///{quoted}"


def _scheme(uri: str) -> str:
    return uri.partition("://")[0].partition("+")[0] if "://" in uri else ""


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite database, or None for any other URI."""
    return Path(unquote(uri.partition(":///")[2].partition("?")[0])) if _scheme(uri) == "sqlite" else None

"""A table with one row per run, from run folders or from MLflow: settings, held-out numbers and state."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fsae.analysis.metrics import keep_meanings
from fsae.analysis.numbers import setting_number
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import RunState, read_status
from fsae.outputs.sweep_folder import job_name, read_sweep
from fsae.tracking.mlflow_upload import FOLDER_TAG, read_description, reason_of
from fsae.tracking.server import as_literal, checked_uri, open_client, sqlite_file, with_password, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Columns of every row, whatever the run's state; its settings and numbers follow.
IDENTITY = ("run", "folder", "state", "failure", "sweep", "commit", "data")
HISTOGRAM = ("density/log10_edges", "density/latents")
# The key of the numbers' meanings in a row; the table keeps them among its attributes.
_MEANINGS = "meanings"
# Prefixes of a run's numbers: held-out measurements, and amounts of data.
MEASURED_GROUPS = ("eval/", "data/")

SWEEP_TAG = "fsae.sweep"
KIND_TAG = "fsae.kind"
COMMIT_TAG = "mlflow.source.git.commit"
DATA_TAG = "fsae.data"

_RUNS_PER_PAGE = 1000
_DOWNLOADS_AT_ONCE = 8


def collect_folders(paths: Iterable[Path]) -> pd.DataFrame:
    """Collect every run in these folders: run folders, sweeps' folders, or any folder above them.

    A folder whose files are damaged or missing is a row too, with the reason in `failure`.

    Returns:
        One row per run, ordered by folder. Columns: `run`, `folder` (absolute), `state` (that of `status.json`, or
        "killed", "not started", "damaged"), `failure`, `sweep`, `commit`; the flat settings as numbers if all
        values of one are; the results' numbers as `eval/<metric>` and `data/<count>`, NaN if they are not finite;
        `density/...`, the histogram's lists. A value that a run lacks is None or NaN. The meanings of the numbers are
        among the table's attributes (`fsae.analysis.metrics.meanings_of`).

    Raises:
        ValueError: one of the paths does not exist, or there is no run in any.
    """
    paths = [Path(path) for path in paths]
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder; name a run's or a sweep's, as in outputs/sweeps/<date>/<time>")
    folders = {folder.resolve(): None for path in paths for folder in _run_folders(path)}
    if not folders:
        raise ValueError(
            f"no run in {', '.join(map(str, paths))}; a run's folder holds status.json, a sweep's folder one per job"
        )
    return _frame([_read_folder(RunFolder(folder)) for folder in sorted(folders, key=_numbers_as_such)])


def collect_mlflow(uri: str, experiment: str, sweep: str | None = None) -> pd.DataFrame:
    """Collect the same table from an MLflow experiment; histograms and failures come from the runs' artifacts.

    Args:
        uri: the tracking server or database.
        experiment: the experiment's name.
        sweep: only the runs with this value of the tag `fsae.sweep`, such as "2026-11-21/14-00-00".

    Raises:
        ValueError: no such database, experiment or sweep, or no run in it.
        ConnectionError: the tracking server does not answer.
    """
    uri = with_password(checked_uri(uri, "--mlflow"))
    database = sqlite_file(uri)
    if database and not database.exists():
        raise ValueError(f"{database}: no such file; --mlflow names the database that the runs were logged to")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        client = open_client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            names = ", ".join(sorted(each.name for each in client.search_experiments()))
            raise ValueError(f"{without_password(uri)} has no experiment {experiment!r}; it has {names}")
        runs = [run for run in _runs_of(client, found.experiment_id, sweep) if run.data.tags.get(KIND_TAG) != "sweep"]
        if not runs:
            within = f" with the tag {SWEEP_TAG} = {sweep}" if sweep else ""
            raise ValueError(f"experiment {experiment!r} of {without_password(uri)} has no run{within}")
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
            rows = list(pool.map(lambda run: _read_mlflow(client, run), runs))
    except ValueError:
        raise
    # An error of MLflow, of its database, or of a missing driver.
    except Exception as error:
        raise ConnectionError(f"MLflow ({without_password(uri)}) does not answer: {reason_of(error)}") from error
    return _frame(sorted(rows, key=lambda row: (_numbers_as_such(Path(row["folder"] or "")), row["run"])))


def _run_folders(path: Path) -> Iterator[Path]:
    """Yield folders with a run's files, and folders that a sweep has reserved for jobs that never started."""
    names = RunFolder(path)
    marks = {file.name for file in (names.status, names.tracking, names.config, names.results, names.metrics)}
    # Folders written by runs, and MLflow's copies of them.
    without_runs = {names.checkpoints.name, names.sae.name, names.plots.name, "activations", "mlartifacts"}
    found = []
    for folder, children, files in ((Path(place), *rest) for place, *rest in os.walk(path)):
        if "sweep.json" in files:
            found += _jobs(folder)
        if marks & set(files):
            found.append(folder)
        children[:] = [name for name in children if name not in without_runs]
    # The folder above all runs may also hold a status.json, of a command that was refused before it had a folder.
    above = {parent for folder in found for parent in folder.parents}
    yield from (folder for folder in found if folder not in above)


def _jobs(sweep: Path) -> list[Path]:
    # There is no list of jobs if the sweeper chooses them from earlier results, or if the file is damaged.
    with suppress(OSError, ValueError, KeyError, TypeError):
        return [sweep / str(number) for number in range(len(json.loads((sweep / "sweep.json").read_text())["jobs"]))]
    return []


def _read_folder(folder: RunFolder) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(IDENTITY) | {"run": folder.path.name, "folder": str(folder.path)}
    try:
        if folder.tracking.exists():
            description = read_description(folder.path)
            row |= _described(description.run_name, description.tags, description.params)
        else:
            row |= _asked_for(folder.path)
        status = read_status(folder.path)
        if status is None:
            return row | {"state": "not started", "failure": "it has no status.json"}
        row["state"] = status.state.value
        # Harvesting fills the activation store and has no results.
        if status.state is RunState.finished and row.get("task") != "harvest":
            row |= _results(folder.results.read_text(encoding="utf-8"))
        elif status.state is RunState.running and not status.is_alive():
            row |= {"state": "killed", "failure": f"its process on {status.host} ended without a report"}
        elif status.failure:
            row["failure"] = f"{status.failure.kind}: {status.failure.message}"
    except (ValueError, OSError) as error:
        return row | {"state": "damaged", "failure": str(error)}
    return row


def _asked_for(folder: Path) -> dict[str, Any]:
    """Return what is known of a sweep's job that never started: its name and its requested settings."""
    with suppress(OSError, ValueError):
        sweep = read_sweep(folder.parent)
        overrides = next((job.overrides for job in sweep.all_jobs() if job.folder == folder), [])
        asked = dict(override.split("=", 1) for override in overrides if override.partition("=")[0] in sweep.varied)
        return asked | {"run": job_name(overrides, sweep.varied) or folder.name, "sweep": sweep.tag}
    return {}


def _read_mlflow(client: MlflowClient, run: Run) -> dict[str, Any]:
    tags, info = run.data.tags, run.info
    row: dict[str, Any] = dict.fromkeys(IDENTITY) | {"folder": tags.get(FOLDER_TAG)}
    row |= _described(info.run_name or info.run_id, tags, run.data.params)
    row["state"] = tags.get("fsae.state", info.status.lower())
    try:
        return row | _outcome(client, run, row["state"])
    except ValueError as error:
        return row | {"state": "damaged", "failure": f"an artifact of the run is damaged: {error}"}


def _outcome(client: MlflowClient, run: Run, state: str) -> dict[str, Any]:
    """Return the numbers of a finished run, or the reason why another run ended."""
    if state == "finished":
        # MLflow stores infinity as the largest finite number; results.json has null for all such numbers.
        numbers = {name: value for name, value in run.data.metrics.items() if name.startswith("eval/")}
        finite = {name: value if abs(value) < 1e308 else float("nan") for name, value in numbers.items()}
        return finite | _results(_artifact(client, run, "results.json"))
    failure = json.loads(_artifact(client, run, "status.json")).get("failure")
    return {"failure": f"{failure['kind']}: {failure['message']}"} if failure else {}


def _described(name: str, tags: Mapping[str, str], params: Mapping[str, str]) -> dict[str, Any]:
    of_tags = {"sweep": SWEEP_TAG, "commit": COMMIT_TAG, "data": DATA_TAG}
    return {"run": name, **{column: tags.get(tag) for column, tag in of_tags.items()}} | dict(params)


def _results(text: str) -> dict[str, Any]:
    """Return the numbers and the histogram in the text of a `results.json`."""
    try:
        results = json.loads(text)
        row: dict[str, Any] = {
            name: float("nan") if value is None else float(value)
            for name, value in results.items()
            if name.startswith(MEASURED_GROUPS)
        }
        row[_MEANINGS] = dict(results.get("meanings") or {})
        if histogram := results.get("density_histogram"):
            row |= dict(zip(HISTOGRAM, (histogram["log10_edges"], histogram["latents"]), strict=True))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"results.json does not hold a run's results ({error!r}); it may be cut off") from error
    return row


def _artifact(client: MlflowClient, run: Run, name: str) -> str:
    """Return the text of a JSON artifact, or the text of an empty object if the run has none."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = client.download_artifacts(run.info.run_id, name, folder)
        except (MlflowException, OSError):
            return "{}"
        return Path(path).read_text(encoding="utf-8")


def _runs_of(client: MlflowClient, experiment_id: str, sweep: str | None) -> Iterator[Run]:
    wanted = f"tags.`{SWEEP_TAG}` = {as_literal(sweep)}" if sweep else ""
    token = None
    while True:
        page = client.search_runs([experiment_id], wanted, max_results=_RUNS_PER_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    names = sorted({name for row in rows for name in row} - {*IDENTITY, *HISTOGRAM, _MEANINGS})
    numbers = [name for name in names if name.startswith(MEASURED_GROUPS)]
    settings = [name for name in names if name not in numbers]
    # A refused job may have any text as a setting; it must not turn the other jobs' numbers into texts.
    finished = [row.get("state") == "finished" for row in rows]
    decisive = pd.Series(finished if any(finished) else [True] * len(rows))
    columns: dict[str, pd.Series] = {}
    for name in (*IDENTITY, *settings, *numbers, *HISTOGRAM):
        # The object type, since pandas' own type for text would turn None into NaN.
        column = pd.Series([row.get(name) for row in rows], dtype=object)
        if name in settings:
            column = _typed(column, decisive)
        columns[name] = column.astype(float) if name in numbers else column
    table = pd.DataFrame(columns)
    keep_meanings(table, (row.get(_MEANINGS, {}) for row in rows))
    return table


def _typed(texts: pd.Series, decisive: pd.Series) -> pd.Series:
    """Return numbers if every decisive run's text is a number (others become empty), else the texts.

    "null" is no value.
    """
    values = texts.where(texts != "null", None)
    numbers = pd.Series(pd.to_numeric(values, errors="coerce"))
    # A text that does not survive the conversion, such as the name "007" or a seed too large for a float, stays text.
    pairs = zip(values[decisive], numbers[decisive].tolist(), strict=True)
    return numbers if all(text is None or setting_number(text) == number for text, number in pairs) else values


def _numbers_as_such(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that puts job 10 after job 9."""
    return [(int(part) if part.isdecimal() else -1, part) for part in path.parts]

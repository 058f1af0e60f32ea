"""The runs and values that MLflow has."""

import sqlite3
from contextlib import closing

from mlflow import MlflowClient
from mlflow.entities import Run


def only_run(uri: str) -> Run:
    """Return the one run that MLflow has."""
    (run,) = runs(uri)
    return run


def runs(uri: str) -> list[Run]:
    """Return all runs that MLflow has."""
    client = MlflowClient(uri)
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def steps(uri: str, name: str) -> list[int]:
    """Return the steps of all values of a metric that MLflow has."""
    history = [MlflowClient(uri).get_metric_history(run.info.run_id, name) for run in runs(uri)]
    return [metric.step for metrics in history for metric in metrics]


def count(uri: str, name: str) -> int:
    """Return how many values of a metric an SQLite database has, in less time than MLflow's client takes."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        ((found,),) = database.execute("select count(*) from metrics where key = ?", [name])
    return found


def states(uri: str) -> list[str]:
    """Return the states of the runs in an SQLite database, sorted."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        return sorted(state for (state,) in database.execute("select status from runs"))

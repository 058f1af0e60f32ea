"""An MLflow server on PostgreSQL with many writers at once: its death half way loses none of their values."""

import subprocess
import sys
import time
from pathlib import Path

from fsae.tracking.sweep_summary import SweepRun
from tests.cluster.writer import NAMES, SECONDS, STEPS
from tests.processes import environment
from tests.tracking.mlflow_server import Server

WRITERS = 8
REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_death_of_the_server_loses_no_value_of_eight_writers(postgres: str, tmp_path: Path):
    server = Server(tmp_path / "unused.db", tmp_path / "server.log", store=postgres)
    server.start()
    try:
        server.wait_until_up()
        # As at a sweep's start, this prepares the empty database for all writers.
        sweep = SweepRun(uri=server.uri, outputs=tmp_path, experiment="writers", sweep="one", seconds=60)
        sweep.open()
        began = time.monotonic()
        writers = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.writer", str(tmp_path / f"writer {n}"), server.uri],
                env=environment(tmp_path), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for n in range(WRITERS)
        ]  # fmt: skip
        logs = [tmp_path / f"writer {n}" / "metrics.jsonl" for n in range(WRITERS)]
        while not all(path.exists() and path.read_bytes().count(b"\n") > STEPS / 2 for path in logs):
            assert time.monotonic() - began < 120
            time.sleep(0.05)
        server.kill()
        time.sleep(SECONDS / 4)
        server.start()
        output = [writer.communicate(timeout=150)[0] for writer in writers]
        assert [writer.returncode for writer in writers] == WRITERS * [0], output
        server.wait_until_up()
        # As at a sweep's end, this sends what a writer could not upload before it ended.
        sweep.deliver([path.parent for path in logs])

        from mlflow import MlflowClient

        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("writers")
        assert experiment
        runs = client.search_runs([experiment.experiment_id], "attributes.run_name LIKE 'writer %'")
        assert [run.info.status for run in runs] == WRITERS * ["FINISHED"]
        for run in runs:
            for name in range(NAMES):
                history = client.get_metric_history(run.info.run_id, f"train/metric_{name}")
                values = sorted((metric.step, metric.value) for metric in history)
                assert values == [(step, step + name / NAMES) for step in range(STEPS)]
    finally:
        server.kill()

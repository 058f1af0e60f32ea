"""An MLflow server on PostgreSQL: many writers at once, and none of their values lost when it dies half way."""

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


def test_nothing_is_lost_of_eight_writers_though_the_server_dies_half_way(postgres: str, tmp_path: Path):
    server = Server(tmp_path / "unused.db", tmp_path / "server.log", store=postgres)
    server.start()
    try:
        server.wait_until_up()
        # As at a sweep's start: the database is empty before, and ready for all of them after.
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
        said = [writer.communicate(timeout=150)[0] for writer in writers]
        assert [writer.returncode for writer in writers] == WRITERS * [0], said
        server.wait_until_up()
        # As at a sweep's end: what a writer could not deliver before it ended is in its folder.
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

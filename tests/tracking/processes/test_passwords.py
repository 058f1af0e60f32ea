"""A password in a tracking server's address: commands as people start them, and every file that they write."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.processes import environment
from tests.test_credentials import HUB_TOKEN, PASSWORD, TOKEN, TYPED, assert_no_secret_shown
from tests.tracking.mlflow_server import Server
from tests.tracking.processes.password_server import PasswordServer

# A run of about a second after its imports, since it needs no language model.
SHORT = (
    "source=toy_clusters", "arch=topk", "trainer.samples=2000", "trainer.batch_size=100", "suite=quick",
    "suite.samples=200", "suite.batch_size=200", "suite.latents=200", "tracking.flush_seconds=20",
)  # fmt: skip


def outputs_of(*commands: list[str], outputs: Path, **variables: str) -> list[tuple[int, str]]:
    """Run `python -m COMMAND` for all commands at once; returns each exit status and output."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment(outputs, **variables),
            cwd=outputs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    printed = [process.communicate(timeout=200)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, printed, strict=True)]


@pytest.fixture
def guarded(server: Server) -> Iterator[PasswordServer]:
    """A password server in front of a running MLflow server."""
    server.start()
    server.wait_until_up()
    proxy = PasswordServer(server.uri, "me", PASSWORD)
    yield proxy
    proxy.close()


def test_a_password_works_and_is_stored_nowhere(guarded: PasswordServer, server: Server, tmp_path: Path) -> None:
    """Covers a sweep with a failing job, a run that is synced later, a refusal, and `--cfg`."""
    outputs = tmp_path / "outputs"
    own = outputs / "own" / "experiment"
    own.mkdir(parents=True)
    # A user's own file may have it; messages about it may not.
    (own / "mine.yaml").write_text("# @package _global_\ntracking:\n  uri: http://me:Zebra@host\n")
    away, bare = f"http://{TOKEN}@127.0.0.1:9", f"http://127.0.0.1:{guarded.port}"
    there = bare.replace("127", f"me:{TYPED}@127")
    # The sweep's second job diverges.
    sweep, alone, *others = outputs_of(
        [
            "fsae.run",
            "-m",
            *SHORT,
            "arch.k=2",
            "trainer.lr=1e-3,1e30",
            f"tracking.uri={there}",
            "hydra.sweep.dir=sweep",
        ],
        ["fsae.run", *SHORT, "arch.k=2", "tracking.flush_seconds=1", "name=away"],
        ["fsae.run", "--cfg", "job", "--config-dir=own", "experiment=mine"],
        ["fsae.run", f"tracking.uri={there}", f"tracking.url=http://me:{TYPED}@host"],
        outputs=outputs,
        MLFLOW_TRACKING_URI=away,
        HF_TOKEN=HUB_TOKEN,
    )
    (own / "mine.yaml").unlink()
    assert "1 finished" in sweep[1], sweep[1]
    assert (sweep[0], alone[0], *(status for status, _ in others)) == (1, 0, 0, 1), alone[1]
    assert "not in MLflow (http://127.0.0.1:9) yet" in alone[1]

    (folder,) = (outputs / "runs").glob("away*")
    synced = outputs_of(["fsae.sync", str(folder), "--tracking-uri", there], outputs=outputs)
    assert synced[0][0] == 0, synced
    client = MlflowClient(server.uri)
    runs = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "trainer.lr=0.001,penalty=fisher": "FINISHED",
        "trainer.lr=1e+30,penalty=fisher": "FAILED",
        f"{folder.name},penalty=fisher": "FINISHED",
        f"sweep {outputs / 'sweep'}": "FAILED",
    }
    job = runs["trainer.lr=0.001,penalty=fisher"]
    assert job.data.metrics["eval/fvu"] >= 0
    assert job.data.params["tracking.uri"] == bare
    assert "config.yaml" in {artifact.path for artifact in client.list_artifacts(job.info.run_id)}
    output = "".join(text for _, text in (sweep, alone, *others, *synced))
    assert_no_secret_shown(outputs, tmp_path / "server", printed=output)

"""`launcher=packed`: many jobs in one process, each with its own folder and outcome."""

import json
import signal
from pathlib import Path

import pytest

from tests.cluster.sweeps import LONG, assert_equal_runs, is_training, states_in
from tests.processes import begun, ended, wait_until

PACKED = (*LONG, "trainer.samples=100_000", "launcher=packed", "arch=topk", "arch.d_sae=64", "source.seed=0")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def swept(outputs: Path) -> tuple[Path, str, int]:
    """A sweep's folder, output and exit status: two k and two layers, and two faulty jobs."""
    folder = outputs / "sweeps" / "whole"
    done = ended(
        begun(
            "fsae.run", "-m", *PACKED, "arch.k=8,12,99", "site.layer=1,2", f"hydra.sweep.dir={folder}", outputs=outputs
        )
    )
    return folder, done.stdout, done.returncode


def test_faulty_jobs_are_refused_and_the_others_form_one_pack(swept: tuple[Path, str, int]):
    folder, output, exit_status = swept
    assert exit_status == 1
    assert list(states_in(folder).values()) == ["finished"] * 4 + ["refused"] * 2
    assert "4 jobs in packs of 4" in output
    assert "Traceback" not in output
    log = (folder / "5" / "run.log").read_text()
    assert "arch.k is 99, more than the 64 latents" in log
    assert "training:" not in log
    results = {json.loads((folder / str(n) / "results.json").read_text())["eval/fvu"] for n in range(4)}
    assert len(results) == 4


def test_resume_finishes_a_stopped_and_killed_sweep_with_the_same_numbers(swept: tuple[Path, str, int], outputs: Path):
    folder = outputs / "sweeps" / "disturbed"
    process = begun(
        "fsae.run", "-m", *PACKED, "arch.k=8,12", "site.layer=1,2", f"hydra.sweep.dir={folder}", outputs=outputs
    )
    wait_until(lambda: is_training(folder / "3"), process)
    process.send_signal(signal.SIGTERM)
    done = ended(process)
    assert done.returncode == 143, done.stdout
    assert states_in(folder) == {str(n): "interrupted" for n in range(4)}

    before = {n: (folder / str(n) / "checkpoints" / "latest.pt").stat().st_mtime_ns for n in range(4)}
    process = begun("fsae.resume", str(folder), outputs=outputs)
    # Each job saves at its own time, so the states may differ by some steps.
    wait_until(lambda: (folder / "0" / "checkpoints" / "latest.pt").stat().st_mtime_ns > before[0], process)
    process.kill()
    process.communicate()
    assert set(states_in(folder).values()) <= {"running", "finished"}

    done = ended(begun("fsae.resume", str(folder), outputs=outputs))
    assert done.returncode == 0, done.stdout
    assert states_in(folder) == {str(n): "finished" for n in range(4)}
    whole, _, _ = swept
    for number in ("0", "1", "2", "3"):
        assert_equal_runs(folder / number, whole / number)

"""Checks of `launcher=slurm` before anything runs; the rest needs a Slurm (tests/cluster)."""

import stat
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from fsae.outputs.slurm_queue import QueueUnknown, queued_states
from fsae.sweeps.slurm_launcher import SlurmSettings, check_slurm


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts one-line programs on an otherwise empty PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(**lines: str) -> None:
        for name, line in lines.items():
            program = tmp_path / name
            program.write_text(f"#!/bin/sh\n{line}\n")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return put


def settings(**changes: object) -> DictConfig:
    return OmegaConf.structured(SlurmSettings(**changes))  # pyright: ignore[reportArgumentType]


def test_the_error_without_slurm_names_another_launcher(programs):
    with pytest.raises(ValueError, match=r"there is no sbatch on PATH.*use launcher=joblib"):
        check_slurm(settings())


def test_the_error_for_an_unknown_partition_lists_the_known_ones(programs):
    programs(sbatch="exit 0", sinfo="echo main; echo gpu; echo gpu")
    check_slurm(settings())
    check_slurm(settings(partition="gpu,main"))
    with pytest.raises(ValueError, match=r"^hydra\.launcher\.partition=cpu: this Slurm has gpu, main$"):
        check_slurm(settings(partition="main,cpu"))


def test_a_slurm_that_does_not_answer_is_reported(programs):
    programs(sbatch="exit 0", sinfo="echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(ValueError, match=r"Slurm does not answer .*Unable to contact slurm controller"):
        check_slurm(settings())


def test_queued_states_reads_the_queue(programs):
    programs(squeue="echo '12_0 RUNNING'; echo '12_3 PENDING'; echo '13 RUNNING'")
    assert queued_states(["12_0", "12_1", "13"]) == {"12_0": "RUNNING", "13": "RUNNING"}


def test_a_forgotten_job_is_over_and_a_missing_answer_is_an_error(programs):
    programs(squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert queued_states(["12_0"]) == {}
    programs(squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(QueueUnknown, match="Unable to contact"):
        queued_states(["12_0"])

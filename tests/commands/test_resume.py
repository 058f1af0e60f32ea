"""The command that finishes a sweep."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fsae.commands import resume
from fsae.configuration.overrides import quoted
from fsae.outputs.sweep_folder import Sweep


def sweep(folder: Path) -> Sweep:
    return Sweep(
        folder=folder,
        tag="one",
        started="",
        command=[],
        working_directory="/here",
        outputs="/there",
        config_dirs=["/own"],
        hydra_overrides=[
            "hydra.mode=MULTIRUN",
            "hydra.sweep.dir=/elsewhere",
            "hydra.sweeper.max_batch_size=2",
            "hydra.launcher.partition=gpu",
            "hydra.verbose=true",
        ],
        constant=["launcher=slurm", "seed=1"],
        varied=["arch"],
        jobs=[],
    )


OWN = ["hydra.sweep.dir='/a sweep'", "hydra/sweeper=remaining", "hydra.callbacks.sweep.resumed=true"]


def test_resume_launches_with_the_sweeps_own_launcher():
    command = resume._command(sweep(Path("/a sweep")), [])
    kept = ["launcher=slurm", "seed=1", "hydra.launcher.partition=gpu", "hydra.verbose=true"]
    assert command == ["--multirun", "--config-dir=/own", *kept, *OWN]


def test_resume_may_change_a_setting_of_the_launcher():
    command = resume._command(sweep(Path("/a sweep")), ["hydra.launcher.partition=cpu"])
    kept = ["launcher=slurm", "seed=1", "hydra.verbose=true", "hydra.launcher.partition=cpu"]
    assert command == ["--multirun", "--config-dir=/own", *kept, *OWN]


def test_resume_with_another_launcher_drops_the_formers_settings():
    command = resume._command(sweep(Path("/a sweep")), ["launcher=joblib", "hydra.launcher.n_jobs=4"])
    kept = ["seed=1", "hydra.verbose=true", "launcher=joblib", "hydra.launcher.n_jobs=4"]
    assert command == ["--multirun", "--config-dir=/own", *kept, *OWN]


@pytest.mark.parametrize(
    "name", ["plain", "it's", "a=b", "a,b=c d", "back\\slash", "back\\' of", "ends in \\\\", "%20 {x} [y] ü"]
)
def test_resume_accepts_a_folder_of_any_name(name: str):
    (override,) = OverridesParser.create().parse_overrides([f"hydra.sweep.dir={quoted(Path(name))}"])
    assert str(override.value()) == name


def test_resume_refuses_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sweep(tmp_path).write()
    with pytest.raises(SystemExit) as left:
        resume.main([str(tmp_path), "trainer.lr=1"])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("fsae: trainer.lr=1: a sweep is finished with the settings it began with")


def test_resume_refuses_a_folder_without_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        resume.main([str(tmp_path)])
    assert left.value.code == 2
    assert "holds no sweep.json" in capsys.readouterr().err

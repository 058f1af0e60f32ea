"""Which command finishes a sweep."""

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


def test_it_launches_as_before():
    command = resume._command(sweep(Path("/a sweep")), [])
    kept = ["launcher=slurm", "seed=1", "hydra.launcher.partition=gpu", "hydra.verbose=true"]
    assert command == ["--multirun", "--config-dir=/own", *kept, *OWN]


def test_or_with_a_setting_of_the_launcher_changed():
    command = resume._command(sweep(Path("/a sweep")), ["hydra.launcher.partition=cpu"])
    kept = ["launcher=slurm", "seed=1", "hydra.verbose=true", "hydra.launcher.partition=cpu"]
    assert command == ["--multirun", "--config-dir=/own", *kept, *OWN]


def test_or_by_another_launcher_without_the_former_one_s_settings():
    command = resume._command(sweep(Path("/a sweep")), ["launcher=joblib", "hydra.launcher.n_jobs=4"])
    kept = ["seed=1", "hydra.verbose=true", "launcher=joblib", "hydra.launcher.n_jobs=4"]
    assert command == ["--multirun", "--config-dir=/own", *kept, *OWN]


@pytest.mark.parametrize(
    "name", ["plain", "it's", "a=b", "a,b=c d", "back\\slash", "back\\' of", "ends in \\\\", "%20 {x} [y] ü"]
)
def test_a_folder_of_any_name_is_read_as_it_is(name: str):
    (override,) = OverridesParser.create().parse_overrides([f"hydra.sweep.dir={quoted(Path(name))}"])
    assert str(override.value()) == name


def test_other_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sweep(tmp_path).write()
    with pytest.raises(SystemExit) as left:
        resume.main([str(tmp_path), "trainer.lr=1"])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("fsae: trainer.lr=1: a sweep is finished with the settings it began with")


def test_so_is_what_is_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        resume.main([str(tmp_path)])
    assert left.value.code == 2
    assert "holds no sweep.json" in capsys.readouterr().err

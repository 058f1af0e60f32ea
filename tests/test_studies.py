"""The studies' scripts: every arm can be run, and started arms are resumed."""

import os
import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from fsae.autoencoders.layout import Ends
from fsae.configuration.checks import check
from fsae.configuration.schema import RunSettings, settings_of
from fsae.sources.mnist import MNISTSettings
from fsae.sweeps.launch import drop_overridden_lists
from fsae.training.pam_settings import PamSettings
from tests.composition import composed, composed_with_hydra, without_hydra

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(ROOT.glob("experiments/*/run.sh"))

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.parent.name)


def commands(script: Path, folder: Path) -> list[list[str]]:
    """Return the commands of the script, run with a Python that only records them and a cp that does nothing."""
    notes, python, copy = folder / "notes", folder / "bin" / "python", folder / "bin" / "cp"
    python.parent.mkdir(exist_ok=True)
    notes.unlink(missing_ok=True)
    python.write_text(f'#!/bin/sh\nprintf "%s\\t" "$@" >> {notes}\necho >> {notes}\n')
    copy.write_text("#!/bin/sh\n")
    for program in (python, copy):
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", script, folder / "out"], env=environment, check=True)
    return [line.rstrip("\t").split("\t") for line in notes.read_text().splitlines()]


def arms(script: Path, folder: Path) -> list[tuple[Path, list[str]]]:
    """Return the folder and the overrides of each sweep that the script starts."""
    found = []
    for module, *overrides in [each[1:] for each in commands(script, folder)]:
        if module == "fsae.run":
            (where,) = (each for each in overrides if each.startswith("hydra.sweep.dir="))
            found.append((Path(where.partition("=")[2]), [each for each in overrides if each != where]))
    return found


def swept(value: str) -> list[str]:
    """Return the values of a sweep over them; the commas of a list in brackets separate none."""
    return re.split(r",(?![^\[]*\])", value)


def jobs(overrides: list[str]) -> Iterator[RunSettings]:
    """Yield settings with the first values of all lists of a sweep, with the second ones, and so on."""
    given = dict(each.split("=", 1) for each in overrides)
    config = composed_with_hydra(*(f"{key}={swept(value)[0]}" for key, value in given.items()))
    drop_overridden_lists(config)
    lists = given
    if config.hydra.mode is not None and config.hydra.mode.name == "MULTIRUN":
        lists = {key: str(values) for key, values in (config.hydra.sweeper.params or {}).items()} | given
    values = {key: swept(value) for key, value in lists.items()}
    places = max(len(some) for key, some in values.items() if key != "seed")
    if lists is given:
        # Composing takes most of the time of these tests.
        yield settings_of(without_hydra(config))
    for place in range(1 if lists is given else 0, places):
        yield settings_of(composed(*(f"{key}={some[min(place, len(some) - 1)]}" for key, some in values.items())))


@pytest.mark.parametrize(
    "data", sorted(each.stem.removeprefix("pam_") for each in ROOT.glob("conf/experiment/splines/pam_*.yaml"))
)
def test_pam_and_its_baseline_differ_in_the_trainer_alone(data: str):
    pam, sgd = (settings_of(composed(f"experiment=splines/{way}_{data}", "seed=1")) for way in ("pam", "sgd"))
    for part in ("model", "site", "dataset", "source", "arch", "loss", "eval", "population"):
        assert getattr(pam, part) == getattr(sgd, part), part
    assert isinstance(pam.trainer, PamSettings)
    moved = sum(pam.trainer.has_gradients_at(step) for step in range(pam.trainer.steps))
    assert moved == sgd.trainer.steps
    for setting in ("batch_size", "lr", "warm_up", "decay", "activation_scale", "updates_per_batch"):
        assert getattr(pam.trainer, setting) == getattr(sgd.trainer, setting), setting


@each_script
def test_every_arm_can_be_run(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSAE_OUTPUTS", str(tmp_path))
    folders, kinds = set(), set()
    for folder, overrides in arms(script, tmp_path):
        assert folder not in folders
        folders.add(folder)
        # Arms of a loop differ only in numbers that the script computes.
        kind = tuple(re.sub(r"\d[\d_.]*", "#", each) for each in overrides)
        if kind in kinds:
            continue
        kinds.add(kind)
        for settings in jobs(overrides):
            check(settings)
            if isinstance(settings.source, MNISTSettings):
                # The width is known only after the files are read.
                settings.check_ends(Ends.of(784))
    assert len(folders) > 5


@each_script
def test_resume_continues_started_arms(script: Path, tmp_path: Path):
    started = next(each for each in commands(script, tmp_path) if each[1] == "fsae.run")
    (folder,) = (Path(each.partition("=")[2]) for each in started if each.startswith("hydra.sweep.dir="))
    folder.mkdir(parents=True)
    (folder / "sweep.json").touch()
    resumed = commands(script, tmp_path)
    assert ["-m", "fsae.resume", str(folder)] in resumed
    assert started not in resumed


@each_script
def test_every_arm_is_in_a_table_and_every_table_has_arms(script: Path, tmp_path: Path):
    folders = [folder for folder, _ in arms(script, tmp_path)]
    tables = [
        each
        for command in commands(script.with_name("tables.sh"), tmp_path)
        for before, each in pairwise(command)
        if each.startswith(f"{tmp_path}/out/") and before != "--out"
    ]

    def has(pattern: str, arm: Path) -> bool:
        return any(folder.match(pattern) for folder in (arm, *arm.parents))

    assert [pattern for pattern in tables if not any(has(pattern, arm) for arm in folders)] == []
    assert [arm for arm in folders if not any(has(pattern, arm) for pattern in tables)] == []

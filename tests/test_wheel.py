"""The built wheel and the bare source tree run from any folder, with their own YAML files."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# Ends of the names of files that are code, texts that code writes, and a table that it reads.
CODE = ("py", "jinja", "js", "css", "csv", "typed")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, as its installation would put it on the path."""
    place = tmp_path_factory.mktemp("wheel")
    # Without isolation nothing is downloaded: the build backend is one of the development packages.
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place / "dist"), str(REPOSITORY)],
        check=True,
        capture_output=True,
        text=True,
    )
    (wheel,) = (place / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "unpacked")
    return place / "unpacked"


def output_of(path: Path, folder: Path, *arguments: str) -> str:
    """Run the command in `folder` with `path` first on the module path; returns its output."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("FSAE", "HYDRA", "MLFLOW"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "fsae.run", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_only_the_code_and_the_yaml_files(unpacked: Path):
    names = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()}
    code = {name.relative_to("fsae") for name in names if name.parts[0] == "fsae" and name.parts[1] != "conf"}
    conf = {name.relative_to("fsae/conf") for name in names if name.parts[:2] == ("fsae", "conf")}
    source = REPOSITORY / "src" / "fsae"
    assert code == {path.relative_to(source) for end in CODE for path in source.rglob(f"*.{end}")}
    assert conf == {path.relative_to(REPOSITORY / "conf") for path in (REPOSITORY / "conf").rglob("*.yaml")}
    # Hydra looks for launchers in a namespace of its own.
    assert {name for name in names if name.parts[0] == "hydra_plugins"} == {Path("hydra_plugins", "fsae.py")}
    rest = {name.parts[0] for name in names} - {"fsae", "hydra_plugins"}
    assert len(rest) == 1
    assert rest.pop().endswith(".dist-info")


def test_the_wheel_runs_from_any_folder_with_its_own_yaml_files(unpacked: Path, tmp_path: Path):
    # The packaged file gets a value of its own, which shows that it is read.
    own = unpacked / "fsae" / "conf" / "config.yaml"
    own.write_text(own.read_text().replace("\nseed: 0\n", "\nseed: 4321\n"))
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch" / "mine.yaml").write_text("defaults: [/schema/arch@_here_: topk, _self_]\nk: 77\n")
    output = output_of(unpacked, tmp_path, "--config-dir=.", "--cfg=job", "arch=mine", "loss=topk")
    assert "\nseed: 4321\n" in output
    assert "  k: 77\n" in output
    assert str(own.parent) in output_of(unpacked, tmp_path, "--info=searchpath")


def test_the_source_tree_runs_from_any_folder_with_its_own_yaml_files(tmp_path: Path):
    output = output_of(REPOSITORY / "src", tmp_path, "--info=searchpath")
    assert str(REPOSITORY / "conf") in output

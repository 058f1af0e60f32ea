"""The built wheel and the bare source tree run from any folder, with the YAML files they bring along."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what installing the wheel would put on the path."""
    place = tmp_path_factory.mktemp("wheel")
    # Not isolated, so that nothing is downloaded: the build backend is among the packages for development.
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


def said(path: Path, folder: Path, *arguments: str) -> str:
    """What the command says that is started in `folder` with `path` first among the places of modules."""
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


def test_it_holds_the_code_the_yaml_files_and_nothing_else(unpacked: Path):
    names = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()}
    code = {name.relative_to("fsae") for name in names if name.parts[0] == "fsae" and name.parts[1] != "conf"}
    conf = {name.relative_to("fsae/conf") for name in names if name.parts[:2] == ("fsae", "conf")}
    source = REPOSITORY / "src" / "fsae"
    assert code == {path.relative_to(source) for end in ("py", "jinja") for path in source.rglob(f"*.{end}")}
    assert conf == {path.relative_to(REPOSITORY / "conf") for path in (REPOSITORY / "conf").rglob("*.yaml")}
    # Hydra finds our launchers in a namespace of its own.
    assert {name for name in names if name.parts[0] == "hydra_plugins"} == {Path("hydra_plugins", "fsae.py")}
    rest = {name.parts[0] for name in names} - {"fsae", "hydra_plugins"}
    assert len(rest) == 1
    assert rest.pop().endswith(".dist-info")


def test_it_runs_from_any_folder_with_its_own_yaml_files(unpacked: Path, tmp_path: Path):
    # A value that only the packaged file has shows which one is read.
    own = unpacked / "fsae" / "conf" / "config.yaml"
    own.write_text(own.read_text().replace("\nseed: 0\n", "\nseed: 4321\n"))
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch" / "mine.yaml").write_text("defaults: [/schema/arch@_here_: topk, _self_]\nk: 77\n")
    told = said(unpacked, tmp_path, "--config-dir=.", "--cfg=job", "arch=mine", "loss=topk")
    assert "\nseed: 4321\n" in told
    assert "  k: 77\n" in told
    assert str(own.parent) in said(unpacked, tmp_path, "--info=searchpath")


def test_so_does_the_bare_source_tree(tmp_path: Path):
    told = said(REPOSITORY / "src", tmp_path, "--info=searchpath")
    assert str(REPOSITORY / "conf") in told

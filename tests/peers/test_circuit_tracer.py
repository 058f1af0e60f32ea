"""circuit-tracer's own loader opens exported transcoders, and its graph of a prompt is made with them."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fsae
from fsae.language_models.packaged import packaged_folder
from fsae.language_models.settings import Package
from fsae.publishing.circuit_tracer import write_circuit_tracer
from tests.architectures import relative_error
from tests.processes import finished

pytestmark = pytest.mark.peers

TEXT = "the cat sat on"
SMALL = (
    "debug=tiny", "model=custom", "model.dtype=float32", "arch=batch_topk", "arch.d_sae=48", "arch.k=4",
    "trainer.samples=8192", "source.tokens=4096", "source.shard_tokens=4096", "eval=[vectors]",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny language model with norms whose weights are not 1."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(packaged_folder(Package.tiny), folder)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "norm" in name:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def layers(circuit_tracer, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[fsae.Dictionary], dict]:
    """The dictionaries of a sweep over all layers, and what circuit-tracer makes of their export."""
    folder = tmp_path_factory.mktemp("layers")
    words = ["-m", *SMALL, f"model.path={model}", "layout=skip_transcoder", "site.layer=range(0,4)", "launcher=packed"]
    done = finished(*words, f"hydra.sweep.dir={folder}/sweep", outputs=folder)
    assert done.returncode == 0, done.stdout
    assert write_circuit_tracer([folder / "sweep"], folder / "set") == 4
    dictionaries = [fsae.load(folder / "sweep" / str(layer)) for layer in range(4)]
    return dictionaries, _theirs(circuit_tracer, dictionaries[0], folder / "set", model)


def _theirs(circuit_tracer, dictionary: fsae.Dictionary, exported: Path, model: Path) -> dict[str, Tensor]:
    assert dictionary.language_model is not None
    tokens = dictionary.language_model.activations(TEXT, "mlp_in.0", special_tokens=True, prepend_bos=True).tokens
    save_file({"tokens": tokens}, exported.with_suffix(".tokens"))
    circuit_tracer(exported, model, exported.with_suffix(".tokens"), exported.with_suffix(".out"))
    return load_file(exported.with_suffix(".out"))


def test_it_reads_and_replaces_the_same_vectors(layers: tuple[list[fsae.Dictionary], dict]):
    dictionaries, theirs = layers
    for layer, dictionary in enumerate(dictionaries):
        assert dictionary.language_model is not None
        for site, found in ((dictionary.site, "read"), (dictionary.written_site, "written")):
            assert site is not None
            own = dictionary.language_model.activations(TEXT, site, special_tokens=True, prepend_bos=True).vectors
            assert relative_error(theirs[found][layer], own) < 1e-5
    # Without the norm's weight the vectors would be others.
    assert not torch.allclose(theirs["read"][0].square().mean(1), torch.ones(len(theirs["read"][0])), atol=0.05)


def test_its_codes_and_reconstructions_are_those_of_the_runs(layers: tuple[list[fsae.Dictionary], dict]):
    dictionaries, theirs = layers
    for layer, dictionary in enumerate(dictionaries):
        read = theirs["read"][layer]
        assert relative_error(theirs["codes"][layer], dictionary.encode(read)) < 1e-5
        assert relative_error(theirs["reconstruction"][layer], dictionary(read)) < 1e-5


def test_its_graph_has_the_codes_of_the_prompt(layers: tuple[list[fsae.Dictionary], dict]):
    _, theirs = layers
    codes = theirs["codes"].clone()
    # circuit-tracer leaves the first token out.
    codes[:, 0] = 0
    assert torch.equal(theirs["active"], codes.nonzero())
    assert len(theirs["active"]) > 20
    assert relative_error(theirs["values"], codes[codes != 0]) < 1e-5
    assert theirs["edges"].isfinite().all()
    # The last rows are those of the logits, the first ones those of latents.
    assert theirs["edges"][-len(theirs["logits"]) :, : len(theirs["active"])].any()
    assert theirs["edges"][: len(theirs["active"]), : len(theirs["active"])].any()

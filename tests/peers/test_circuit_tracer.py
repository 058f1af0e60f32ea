"""circuit-tracer's own loader opens exported transcoders, and its graph of a prompt is made with them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fsae
from fsae.language_models.packaged import packaged_folder
from fsae.language_models.settings import Package
from fsae.publishing.circuit_tracer import write_circuit_tracer
from fsae.surface.language_model import Activations
from tests.architectures import relative_error
from tests.processes import finished

pytestmark = pytest.mark.peers

TEXT = "the cat sat on"
SMALL = (
    "debug=tiny", "model.dtype=float32", "arch=batch_topk", "trainer.samples=8192", "source.tokens=4096",
    "source.shard_tokens=4096", "eval=[vectors]",
)  # fmt: skip
# The layout and the language model of each set of transcoders.
SETS = [
    ("skip_transcoder", Package.tiny),
    ("cross_layer_transcoder", Package.tiny),
    ("per_layer_transcoder", Package.smollm2_135m_instruct_q4_1),
]
LAYERS = {Package.tiny: 4, Package.smollm2_135m_instruct_q4_1: 30}


def tiny(folder: Path) -> Path:
    """Return the folder of the tiny language model with norms whose weights are not 1."""
    shutil.copytree(packaged_folder(Package.tiny), folder)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "norm" in name:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@dataclass(frozen=True)
class Traced:
    """Dictionaries of all layers, and what circuit-tracer makes of their export.

    Attributes:
        dictionaries: one per layer, or one of all layers.
        found: vectors, codes and reconstructions, layers first, and the graph.
    """

    dictionaries: list[fsae.Dictionary]
    found: dict[str, Tensor]

    def codes(self) -> Tensor:
        """Return the dictionaries' own codes of circuit-tracer's vectors, layers first."""
        if len(self.dictionaries) > 1:
            pairs = zip(self.dictionaries, self.found["read"], strict=True)
            return torch.stack([each.encode(read) for each, read in pairs])
        (only,) = self.dictionaries
        return torch.stack(only.encode(torch.cat(list(self.found["read"]), 1)).chunk(len(self.found["read"]), 1))

    def reconstructions(self) -> Tensor:
        """Return the dictionaries' own reconstructions of these vectors."""
        if len(self.dictionaries) > 1:
            pairs = zip(self.dictionaries, self.found["read"], strict=True)
            return torch.stack([each(read) for each, read in pairs])
        (only,) = self.dictionaries
        return torch.stack(only(torch.cat(list(self.found["read"]), 1)).chunk(len(self.found["read"]), 1))


@pytest.fixture(scope="module", params=SETS, ids=[f"{layout}-{package.name}" for layout, package in SETS])
def traced(request, circuit_tracer, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    layout, package = request.param
    layers, folder = LAYERS[package], tmp_path_factory.mktemp(layout)
    model = tiny(folder / "tiny") if package is Package.tiny else packaged_folder(package)
    words = [*SMALL, "model=custom", f"model.path={model}", f"layout={layout}", "arch.d_sae=48", "arch.k=4"]
    if package is not Package.tiny:
        words += ["trainer.samples=2048", "source.tokens=2048", "eval.vectors.samples=1024"]
    if layout != "skip_transcoder":
        words += [f"site.layer={list(range(layers))}".replace(" ", ""), f"arch.d_sae={48 * layers}"]
        words += [f"arch.k={4 * layers}", f"hydra.run.dir={folder}/run"]
        trained, runs = folder / "run", [folder / "run"]
    else:
        words += ["-m", f"site.layer=range(0,{layers})", "launcher=packed", f"hydra.sweep.dir={folder}/sweep"]
        trained, runs = folder / "sweep", [folder / "sweep" / str(layer) for layer in range(layers)]
    done = finished(*words, outputs=folder)
    assert done.returncode == 0, done.stdout
    assert write_circuit_tracer([trained], folder / "export") == layers
    dictionaries = [fsae.load(run) for run in runs]
    save_file({"tokens": _activations(dictionaries[0], "mlp_in.0").tokens}, folder / "tokens")
    circuit_tracer(folder / "export", model, folder / "tokens", folder / "out")
    return Traced(dictionaries, load_file(folder / "out"))


def _activations(dictionary: fsae.Dictionary, site: str) -> Activations:
    assert dictionary.language_model is not None
    return dictionary.language_model.activations(TEXT, site, special_tokens=True, prepend_bos=True)


def test_it_reads_and_replaces_the_same_vectors(traced: Traced):
    for layer in range(len(traced.found["read"])):
        for site, found in (("mlp_in", traced.found["read"]), ("mlp_out", traced.found["written"])):
            own = _activations(traced.dictionaries[0], f"{site}.{layer}").vectors
            assert relative_error(found[layer], own) < 1e-5
    # Without the norm's weight the vectors would be others.
    assert not torch.allclose(traced.found["read"].square().mean(2), torch.ones(()), atol=0.05)


def test_its_codes_and_reconstructions_are_those_of_the_runs(traced: Traced):
    assert relative_error(traced.found["codes"], traced.codes()) < 1e-5
    assert relative_error(traced.found["reconstruction"], traced.reconstructions()) < 1e-5


def test_its_graph_has_the_codes_of_the_prompt(traced: Traced):
    found = traced.found
    codes = found["codes"].clone()
    # circuit-tracer leaves the first token out.
    codes[:, 0] = 0
    assert torch.equal(found["active"], codes.nonzero())
    assert len(found["active"]) > 20
    assert relative_error(found["values"], codes[codes != 0]) < 1e-5
    assert found["edges"].isfinite().all()
    # The first rows and columns are those of the latents that matter most, the last ones those of logits.
    latents, logits = len(found["selected"]), len(found["logits"])
    assert latents == min(len(found["active"]), 128)
    assert found["edges"][-logits:, :latents].any()
    assert found["edges"][:latents, :latents].any()

"""sae_lens opens fsae's exports and fsae opens sae_lens', with the same codes and reconstructions."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsae.autoencoders.batch_topk import BatchTopK
from fsae.autoencoders.settings import DecoderNorm
from fsae.export.folding import fold
from fsae.export.provenance import Provenance
from fsae.export.saelens import load_saelens, save_saelens
from tests.architectures import ARCHITECTURES, build, relative_error, samples

pytestmark = pytest.mark.peers

D_IN = 12
SCALE = 0.4

# Architectures that SAELens does not have.
UNKNOWN = {"group_topk", "lista", "mlp_encoder", "omp", "signed_gated", "top_afa"}
# Architecture, settings and hook of each export.
OURS = {
    **{arch: (arch, {}, "hook_resid_mid") for arch in ARCHITECTURES if arch not in UNKNOWN},
    "free": ("gated", {"decoder_norm": DecoderNorm.free}, "hook_mlp_out"),
    "b_dec_kept": ("jumprelu", {"apply_b_dec_to_input": False}, "hook_mlp_out"),
    "heads": ("standard", {}, "attn.hook_z"),
}
THEIRS = {
    "standard": "standard",
    "standard_b_dec_kept": "standard",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "topk_by_contribution": "topk",
    "abstopk": "abs_topk",
    "topk_layer_norm": "topk",
    "jumprelu_norm_rescale": "jumprelu",
    "trained_topk": "topk",
    "trained_batchtopk": "jumprelu",
    "trained_matryoshka_batchtopk": "jumprelu",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "inputs.safetensors"
    save_file({"x": samples(200, D_IN, dtype=torch.float32)}, path)
    return path


@pytest.fixture(scope="module")
def opened(sae_lens, inputs, tmp_path_factory) -> dict[str, dict]:
    """For each export, codes and reconstruction before folding and saving, and sae_lens' from the files."""
    out = tmp_path_factory.mktemp("theirs")
    x = load_file(inputs)["x"]
    expected = {}
    for name, (arch, changes, hook) in OURS.items():
        autoencoder = build(arch, D_IN, 40, dtype=torch.float32, **changes).eval()
        if isinstance(autoencoder, BatchTopK):
            autoencoder.threshold.fill_(0.5)
        folded = fold(autoencoder, SCALE)
        save_saelens(folded, out / name, Provenance(model_name="tiny", hook_name=f"blocks.0.{hook}", context_size=16))
        with torch.no_grad():
            reconstruction = autoencoder(x * SCALE).reconstruction / SCALE
            expected[name] = {"codes": folded(x).codes.dense(), "reconstruction": reconstruction}
    (out / "outputs").mkdir()
    sae_lens("reconstruct", inputs, out / "outputs", *(out / name for name in OURS))
    return {
        name: {
            "expected": expected[name],
            "found": load_file(out / "outputs" / f"{name}.safetensors"),
            "config": json.loads((out / "outputs" / f"{name}.json").read_text()),
        }
        for name in OURS
    }


@pytest.mark.parametrize("name", OURS)
def test_sae_lens_opens_an_export(opened, name):
    expected, found = opened[name]["expected"], opened[name]["found"]
    assert relative_error(found["reconstruction"], expected["reconstruction"]) < 1e-5
    assert relative_error(found["codes"], expected["codes"]) < 1e-5
    assert (expected["codes"] != 0).any()


def test_sae_lens_reads_where_it_came_from(opened):
    metadata = opened["standard"]["config"]["metadata"]
    assert (metadata["model_name"], metadata["hook_name"]) == ("tiny", "blocks.0.hook_resid_mid")
    assert metadata["context_size"] == 16


@pytest.mark.parametrize(
    ("name", "class_"), [("batch_topk", "JumpReLUSAE"), ("abs_topk", "AbsTopKSAE"), ("gated", "GatedSAE")]
)
def test_sae_lens_class(opened, name, class_):
    assert opened[name]["config"]["class"] == class_


@pytest.fixture(scope="module")
def made(sae_lens, inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    sae_lens("make", inputs, folder)
    return folder


@pytest.mark.parametrize("kind", THEIRS)
def test_fsae_opens_an_sae_of_sae_lens(made, inputs, kind):
    autoencoder = load_saelens(made / kind)
    assert autoencoder.settings_type is ARCHITECTURES[THEIRS[kind]].settings
    expected = load_file(made / f"{kind}.safetensors")
    with torch.no_grad():
        record = autoencoder(load_file(inputs)["x"])
    assert relative_error(record.codes.dense(), expected["codes"]) < 1e-5
    assert relative_error(record.reconstruction, expected["reconstruction"]) < 1e-5
    assert (expected["codes"] != 0).any()

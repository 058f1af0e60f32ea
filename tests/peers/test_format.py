"""sae_lens opens fsae's exports and fsae opens sae_lens', with the same codes and reconstructions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsae.autoencoders.batch_topk import BatchTopK
from fsae.autoencoders.layout import Ends, Layout
from fsae.autoencoders.settings import DecoderNorm
from fsae.export.folding import fold
from fsae.export.provenance import Provenance
from fsae.export.saelens import load_saelens, save_saelens
from tests.architectures import ARCHITECTURES, build, relative_error, samples

pytestmark = pytest.mark.peers

D_IN, D_OUT = 12, 7
SCALE = 0.4
TRANSCODER = Ends(input=Layout.of(D_IN, "mlp_in.0"), target=Layout.of(D_OUT, "mlp_out.0"))
SKIP = replace(TRANSCODER, skip=True)

# Architectures that SAELens does not have.
UNKNOWN = {"group_topk", "groupmax", "lista", "mlp_encoder", "omp", "signed_gated", "top_afa"}
# Architecture, settings and hook of each export.
OURS = {
    **{arch: (arch, {}, "hook_resid_mid") for arch in ARCHITECTURES if arch not in UNKNOWN},
    "free": ("gated", {"decoder_norm": DecoderNorm.free}, "hook_mlp_out"),
    "b_dec_kept": ("jumprelu", {"apply_b_dec_to_input": False}, "hook_mlp_out"),
    "heads": ("standard", {}, "attn.hook_z"),
}
# Architecture and ends of transcoders, and the class of SAELens that opens them.
TRANSCODERS = {
    "transcoder": ("standard", TRANSCODER, "Transcoder"),
    "skip_transcoder": ("standard", SKIP, "SkipTranscoder"),
    "jumprelu_transcoder": ("jumprelu", TRANSCODER, "JumpReLUTranscoder"),
    "jumprelu_skip_transcoder": ("jumprelu", SKIP, "JumpReLUSkipTranscoder"),
    "batch_topk_skip_transcoder": ("batch_topk", replace(SKIP, skip_rank=3), "JumpReLUSkipTranscoder"),
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
    "matching_pursuit": "matching_pursuit",
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
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
    made = {name: (arch, D_IN, changes, {"hook_name": hook}) for name, (arch, changes, hook) in OURS.items()}
    hooks = {"hook_name": "mlp.hook_in", "hook_name_out": "hook_mlp_out"}
    made |= {name: (arch, ends, {}, hooks) for name, (arch, ends, _) in TRANSCODERS.items()}
    for name, (arch, ends, changes, hooks) in made.items():
        autoencoder = build(arch, ends, 40, dtype=torch.float32, **changes).eval()
        if isinstance(autoencoder, BatchTopK):
            autoencoder.threshold.fill_(0.5)
        folded = fold(autoencoder, SCALE)
        of_block: dict[str, Any] = {key: f"blocks.0.{hook}" for key, hook in hooks.items()}
        save_saelens(folded, out / name, Provenance(model_name="tiny", context_size=16, **of_block))
        with torch.no_grad():
            reconstruction = autoencoder(x * SCALE).reconstruction / SCALE
            expected[name] = {"codes": folded(x).codes.dense(), "reconstruction": reconstruction}
    (out / "outputs").mkdir()
    sae_lens("reconstruct", inputs, out / "outputs", *(out / name for name in made))
    return {
        name: {
            "expected": expected[name],
            "found": load_file(out / "outputs" / f"{name}.safetensors"),
            "config": json.loads((out / "outputs" / f"{name}.json").read_text()),
        }
        for name in made
    }


@pytest.mark.parametrize("name", [*OURS, *TRANSCODERS])
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
    ("name", "class_"),
    [
        ("batch_topk", "JumpReLUSAE"),
        ("abs_topk", "AbsTopKSAE"),
        ("gated", "GatedSAE"),
        ("matching_pursuit", "MatchingPursuitSAE"),
        *((name, class_) for name, (_, _, class_) in TRANSCODERS.items()),
    ],
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

"""Dictionaries between sites in SAELens' format."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fsae.autoencoders.layout import Ends
from fsae.export.saelens import Provenance, load_saelens, read_provenance, save_saelens
from tests.architectures import ARCHITECTURES, samples
from tests.autoencoders.test_layout import BETWEEN, ENDS, PER_LAYER, each_between, each_ends, moved

# SAELens' names of its dictionaries between two sites.
NAMES = {"standard": "", "jumprelu": "jumprelu_", "batch_topk": "jumprelu_"}
SITES = Provenance(hook_name="blocks.5.mlp.hook_in", hook_name_out="blocks.5.hook_mlp_out")


@each_ends
@each_between
def test_loaded_dictionary_computes_the_same(arch: str, ends: Ends, tmp_path: Path):
    autoencoder = moved(arch, ends).float().eval()
    save_saelens(autoencoder, tmp_path / "sae", SITES)
    loaded, x = load_saelens(tmp_path / "sae"), samples(30, dtype=torch.float32)
    torch.testing.assert_close(loaded(x).reconstruction, autoencoder(x).reconstruction)
    torch.testing.assert_close(loaded(x).codes.dense(), autoencoder(x).codes.dense())
    assert loaded.ends.same == ends.same
    assert loaded.ends.target.widths == ends.target.widths
    assert loaded.ends.blocks == ends.blocks or loaded.ends.latents(14) == ends.latents(14)
    assert loaded.centre is None or ends.same


@each_ends
@each_between
def test_only_what_saelens_decodes_alike_has_a_name_of_saelens(
    arch: str, ends: Ends, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    save_saelens(moved(arch, ends).float().eval(), tmp_path / "sae", SITES)
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    (kind,) = {name for name, each in ENDS.items() if each == ends}
    kind = {"partitioned": "crosscoder", "low_rank": "skip_transcoder"}.get(kind, kind)
    own = ARCHITECTURES[arch].saelens[0]
    if kind in ("transcoder", "skip_transcoder") and arch in NAMES:
        assert config["architecture"] == f"{NAMES[arch]}{kind}"
        assert config["apply_b_dec_to_input"] is False
        assert not caplog.records
    else:
        assert config["architecture"] == f"{own}_{kind}"
        assert "only fsae opens it" in caplog.text
    assert (config["d_in"], config["d_out"]) == (ends.input.width, ends.target.width)
    weights = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    assert ("W_skip" in weights) == ends.skip
    assert not ends.skip or weights["W_skip"].shape == (ends.target.width, ends.input.width)


def test_both_hooks_are_read_back(tmp_path: Path):
    save_saelens(moved("jumprelu", BETWEEN).float().eval(), tmp_path / "sae", SITES)
    found = read_provenance(tmp_path / "sae")
    assert (found.hook_name, found.hook_name_out) == (SITES.hook_name, SITES.hook_name_out)


@pytest.mark.parametrize(
    "said",
    [
        {"normalize_activations": "layer_norm"},
        {"normalize_activations": "constant_norm_rescale"},
        {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 0.4},
        {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 0.4},
    ],
    ids=lambda said: said["normalize_activations"],
)
def test_normalised_inputs_are_refused(said: dict, tmp_path: Path):
    save_saelens(moved("jumprelu", BETWEEN).float().eval(), tmp_path / "sae", SITES)
    path = tmp_path / "sae" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    with pytest.raises(
        ValueError, match=rf"cfg\.json: normalize_activations is '{said['normalize_activations']}', which"
    ):
        load_saelens(tmp_path / "sae")


@pytest.mark.parametrize("parts", [None, [["a", 3]], [["a"]], "ab", [["a", 2], ["a", 3]]], ids=str)
def test_parts_that_do_not_add_up_are_refused(parts: object, tmp_path: Path):
    folder = tmp_path / "sae"
    crosscoder = moved("topk", Ends.of(5)).float().eval()
    save_saelens(crosscoder, folder, Provenance())
    config = json.loads((folder / "cfg.json").read_text())
    config |= {"architecture": "topk_crosscoder", "d_out": 5, "parts": parts}
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cfg\.json: parts (is|has)"):
        load_saelens(folder)


@pytest.mark.parametrize(
    "change",
    [{"latents": 5}, {"latents": 0}, {"reads": []}, {"reads": [2]}, {"writes": [-1]}, {"writes": "b"}],
    ids=str,
)
def test_blocks_that_do_not_fit_are_refused(change: dict, tmp_path: Path):
    folder = tmp_path / "sae"
    save_saelens(moved("topk", PER_LAYER).float().eval(), folder, Provenance())
    config = json.loads((folder / "cfg.json").read_text())
    config["blocks"][0] |= change
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cfg\.json: blocks is"):
        load_saelens(folder)

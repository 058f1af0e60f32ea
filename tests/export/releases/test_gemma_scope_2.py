import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from fsae.export.dictionary_files import load_autoencoder, read_provenance
from tests.export.releases.weights import D_IN, check, drawn, weights

CONFIG = {
    "architecture": "jump_relu",
    "model_name": "gemma-v3-1b-pt",
    "hf_hook_point_in": "model.layers.13.output",
}


def write(folder: Path, config: dict | None = CONFIG, **tensors) -> Path:
    folder.mkdir(parents=True)
    stored = {name.replace("W_", "w_"): tensor for name, tensor in weights().items()} | tensors
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def forward(x):
    w = weights()
    pre = x @ w["W_enc"] + w["b_enc"]
    codes = pre * (pre > w["threshold"])
    return codes, codes @ w["W_dec"] + w["b_dec"]


def test_it_computes_what_gemma_scope_2_defines(tmp_path):
    check(write(tmp_path / "a"), forward)


@pytest.mark.parametrize(
    ("module", "hook"),
    [
        ("model.layers.13.output", "blocks.13.hook_resid_post"),
        ("model.layers.13.self_attn.o_proj.input", "blocks.13.attn.hook_z"),
        ("model.layers.13.post_feedforward_layernorm.output", "blocks.13.hook_mlp_out"),
    ],
)
def test_the_site_is_read_from_its_config(tmp_path, module, hook):
    said = read_provenance(write(tmp_path / "a", CONFIG | {"hf_hook_point_in": module}))
    assert (said.model_name, said.hook_name) == ("google/gemma-3-1b-pt", hook)


def test_an_affine_path_is_stored_with_the_rows_of_the_input(tmp_path):
    skip = drawn(D_IN, D_IN, seed=11)
    ends = {
        "hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output",
    }

    def with_path(x):
        codes, reconstruction = forward(x)
        return codes, reconstruction + x @ skip

    folder = write(tmp_path / "a", CONFIG | ends | {"affine_connection": True}, affine_skip_connection=skip)
    check(folder, with_path)
    said = read_provenance(folder)
    assert (said.hook_name, said.hook_name_out) == ("blocks.5.mlp.hook_in", "blocks.5.hook_mlp_out")


def test_without_a_config_the_path_names_the_site(tmp_path):
    folder = tmp_path / "gemma-scope-2-270m-pt" / "resid_post" / "layer_5_width_16k_l0_medium"
    said = read_provenance(write(folder, None))
    assert (said.model_name, said.hook_name) == ("google/gemma-3-270m", "blocks.5.hook_resid_post")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "topk"}, "architecture is 'topk'"),
        ({"hf_hook_point_in": "model.layers.1.mlp.gate"}, "no place that is known"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused(tmp_path, changes, message):
    folder = write(tmp_path / "a", CONFIG | changes)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(folder)


def test_truncated_weights(tmp_path):
    path = write(tmp_path / "a") / "params.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"params.safetensors is truncated or damaged"):
        load_autoencoder(path.parent)

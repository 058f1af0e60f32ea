import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsae.autoencoders.layout import blocks_across_layers
from fsae.autoencoders.warm_start import check_start
from fsae.export.dictionary_files import load_autoencoder, read_provenance
from fsae.export.releases.circuit_tracer import files_of
from tests.architectures import relative_error, settings_of
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


LAYERS, WIDTH, OF_LAYER = 3, 6, 5
CROSSCODER = {
    "architecture": "jump_relu",
    "model_name": "google/gemma-3-270m-pt",
    "hf_hook_point_in": "model.layers.{5,9,12}.output",
    "hf_hook_point_out": "model.layers.{5,9,12}.output",
    "affine_connection": False,
    "type": "crosscoder",
}
CLT = CROSSCODER | {
    "hf_hook_point_in": "model.layers.{all}.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.{all}.post_feedforward_layernorm.output",
    "type": "clt",
}


def write_layers(folder: Path, config: dict = CLT, layers: int = LAYERS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for layer in range(layers):
        tensors = {
            "w_enc": drawn(WIDTH, OF_LAYER, seed=layer),
            "w_dec": drawn(OF_LAYER, layers, WIDTH, seed=layer),
            "b_enc": drawn(OF_LAYER, seed=layer, by=0.2),
            "b_dec": drawn(WIDTH, seed=layer),
            "threshold": drawn(OF_LAYER, seed=layer + 9).abs(),
        }
        if config["affine_connection"]:
            tensors["affine_skip_connection"] = drawn(WIDTH, WIDTH, seed=layer)
        save_file(tensors, folder / f"params_layer_{layer}.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def their_layers(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and reconstruction by the release's definition, layer by layer; `w_dec` of earlier layers has no part."""
    of_layers = [load_file(folder / f"params_layer_{layer}.safetensors") for layer in range(LAYERS)]
    vectors, codes = x.split(WIDTH, dim=1), []
    for own, v in zip(of_layers, vectors, strict=True):
        pre = v @ own["w_enc"] + own["b_enc"]
        codes.append(pre.relu() * (pre > own["threshold"]))
    found = []
    for layer, (own, v) in enumerate(zip(of_layers, vectors, strict=True)):
        earlier = zip(codes[: layer + 1], of_layers, strict=False)
        written = sum(f @ each["w_dec"][:, layer] for f, each in earlier) + own["b_dec"]
        found.append(written + v @ own["affine_skip_connection"] if "affine_skip_connection" in own else written)
    return torch.cat(codes, dim=1), torch.cat(found, dim=1)


@pytest.mark.parametrize("config", [CLT, CLT | {"affine_connection": True}, CROSSCODER], ids=["clt", "affine", "cross"])
def test_dictionaries_of_several_layers_compute_what_gemma_scope_2_defines(tmp_path, config):
    folder, x = write_layers(tmp_path / "a", config), drawn(60, LAYERS * WIDTH, by=2.0)
    codes, reconstruction = their_layers(folder, x)
    record = load_autoencoder(folder)(x)
    assert (codes != 0).any()
    assert relative_error(record.codes.dense(), codes) < 1e-5
    assert relative_error(record.reconstruction, reconstruction) < 1e-5


def test_a_cross_layer_transcoder_is_one_of_circuit_tracer_and_of_training(tmp_path):
    clt, x = load_autoencoder(write_layers(tmp_path / "a")), drawn(60, LAYERS * WIDTH, by=2.0)
    (tmp_path / "b").mkdir()
    for name, tensors in files_of(clt, list(range(LAYERS)), tmp_path).items():
        save_file(tensors, tmp_path / "b" / name)
    again = load_autoencoder(tmp_path / "b")
    torch.testing.assert_close(again(x).reconstruction, clt(x).reconstruction, rtol=1e-6, atol=1e-6)
    ends = replace(clt.ends, blocks=blocks_across_layers(LAYERS))
    check_start(settings_of("jumprelu", d_sae=LAYERS * OF_LAYER).build(ends, torch.Generator()), clt)


def test_the_layers_are_read_from_their_config(tmp_path):
    said = read_provenance(write_layers(tmp_path / "clt"))
    assert said.model_name == "google/gemma-3-270m"
    assert said.hooks_in == [f"blocks.{layer}.mlp.hook_in" for layer in range(LAYERS)]
    assert said.hooks_out == [f"blocks.{layer}.hook_mlp_out" for layer in range(LAYERS)]
    said = read_provenance(write_layers(tmp_path / "crosscoder", CROSSCODER))
    assert said.hooks_in == said.hooks_out == [f"blocks.{layer}.hook_resid_post" for layer in (5, 9, 12)]


@pytest.mark.parametrize(
    ("config", "layers", "message"),
    [
        (CROSSCODER, 2, "config.json names 3 layers, but next to it are files of 2"),
        (CLT | {"architecture": "topk"}, 3, "architecture is 'topk'"),
        (
            CLT | {"hf_hook_point_in": "model.layers.1.output"},
            3,
            "'model.layers.1.output' is no place in several layers",
        ),
        (CLT | {"hf_hook_point_in": "model.layers.{all}.mlp.gate"}, 3, "is no place in several layers"),
    ],
)
def test_layers_of_another_kind_are_refused(tmp_path, config, layers, message):
    with pytest.raises(ValueError, match=message):
        load_autoencoder(write_layers(tmp_path / "a", config, layers))


def test_a_layer_of_another_shape_or_without_a_file_is_refused(tmp_path):
    file = write_layers(tmp_path) / "params_layer_1.safetensors"
    save_file(load_file(file) | {"b_dec": torch.ones(5)}, file)
    with pytest.raises(
        ValueError, match=r"params_layer_1.safetensors: b_dec is \(5,\), by params_layer_0.safetensors it"
    ):
        load_autoencoder(tmp_path)
    file.rename(tmp_path / "params_layer_7.safetensors")
    with pytest.raises(ValueError, match=r"has no params_layer_1.safetensors; download it again"):
        load_autoencoder(tmp_path)


def test_truncated_weights(tmp_path):
    path = write(tmp_path / "a") / "params.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"params.safetensors is truncated or damaged"):
        load_autoencoder(path.parent)

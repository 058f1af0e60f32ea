import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fsae.export.dictionary_files import load_autoencoder, read_provenance
from tests.export.releases.weights import D_IN, D_SAE, K, check, drawn, largest, weights

CONFIG = {"activation": "topk", "k": K, "expansion_factor": 32, "num_latents": D_SAE, "d_in": D_IN}


def write(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True)
    w = weights()
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(CONFIG | changes))
    return folder


def test_it_computes_what_sparsify_does(tmp_path):
    w = weights()

    def forward(x):
        codes = largest((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
        return codes, codes @ w["W_dec"] + w["b_dec"]

    check(write(tmp_path / "layers.5"), forward)


def test_groupmax_has_one_latent_on_per_group(tmp_path):
    w = weights()

    def forward(x):
        groups = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu().unflatten(1, (K, -1))
        codes = (groups * (groups == groups.amax(2, keepdim=True))).flatten(1)
        return codes, codes @ w["W_dec"] + w["b_dec"]

    check(write(tmp_path / "layers.5", activation="groupmax"), forward)


def test_a_transcoder_subtracts_no_bias_from_its_input(tmp_path):
    w = weights()

    def forward(x):
        codes = largest(x @ w["W_enc"] + w["b_enc"])
        return codes, codes @ w["W_dec"] + w["b_dec"]

    folder = write(tmp_path / "layers.5.mlp", transcode=True)
    check(folder, forward)
    said = read_provenance(folder)
    # An MLP's module reads what its norm gives.
    assert (said.hook_name, said.hook_name_out) == ("blocks.5.mlp.hook_in", "blocks.5.hook_mlp_out")


def test_the_rows_of_w_skip_are_those_of_the_output(tmp_path):
    w, skip = weights(), drawn(D_IN, D_IN, seed=11)

    def forward(x):
        codes = largest(x @ w["W_enc"] + w["b_enc"])
        return codes, codes @ w["W_dec"] + w["b_dec"] + x @ skip.T

    folder = write(tmp_path / "layers.5.mlp", transcode=True, skip_connection=True)
    save_file(load_file(folder / "sae.safetensors") | {"W_skip": skip}, folder / "sae.safetensors")
    check(folder, forward)


@pytest.mark.parametrize(("said", "hook"), [({}, "mlp.hook_in"), ({"transcode": False}, "hook_mlp_out")])
def test_a_linear_path_without_a_transcoder_subtracts_the_bias(tmp_path, said, hook):
    """sparsify reads its first skip transcoders so, whose files do not say `transcode`."""
    w, skip = weights(), drawn(D_IN, D_IN, seed=11)

    def forward(x):
        codes = largest((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
        return codes, codes @ w["W_dec"] + w["b_dec"] + x @ skip.T

    folder = write(tmp_path / "layers.5.mlp", skip_connection=True, **said)
    save_file(load_file(folder / "sae.safetensors") | {"W_skip": skip}, folder / "sae.safetensors")
    check(folder, forward)
    assert read_provenance(folder).hook_name == f"blocks.5.{hook}"


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("layers.5", "blocks.5.hook_resid_post"),
        ("gpt_neox.layers.11", "blocks.11.hook_resid_post"),
        ("transformer.h.0", "blocks.0.hook_resid_post"),
        ("h.3.mlp", "blocks.3.hook_mlp_out"),
        ("layers.7.attention", "blocks.7.hook_attn_out"),
        ("embed_tokens", None),
    ],
)
def test_the_site_is_the_name_of_the_folder(tmp_path, name, hook):
    folder = write(tmp_path / name)
    assert read_provenance(folder).hook_name == hook


@pytest.mark.parametrize(
    ("name", "read", "written"),
    [
        ("layers.5", "blocks.5.hook_resid_pre", "blocks.5.hook_resid_post"),
        ("transformer.h.3.mlp", "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"),
        ("layers.7.self_attn", "blocks.7.attn.hook_in", "blocks.7.hook_attn_out"),
        ("embed_tokens", None, None),
    ],
)
def test_a_transcoder_reads_what_the_module_reads(tmp_path, name, read, written):
    said = read_provenance(write(tmp_path / name, transcode=True))
    assert (said.hook_name, said.hook_name_out) == (read, written)


def test_the_language_model_is_in_the_config_above(tmp_path):
    folder = write(tmp_path / "layers.5")
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m", "ctx_len": 64, "dataset": "d"}))
    said = read_provenance(folder)
    assert (said.model_name, said.context_size, said.dataset_path) == ("EleutherAI/pythia-70m", 64, "d")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu"}, "asks for activation 'relu', which is not supported; known are topk, groupmax"),
        ({"signed": True}, "asks for signed"),
        ({"skip_connection": True}, "has no tensor W_skip"),
        ({"k": None}, "k is None"),
        ({"d_in": 7}, r"W_enc is \(32, 64\), by cfg.json it should be \(7, 64\)"),
    ],
)
def test_settings_that_cannot_be_honoured(tmp_path, changes, message):
    folder = write(tmp_path / "layers.5", **changes)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(folder)

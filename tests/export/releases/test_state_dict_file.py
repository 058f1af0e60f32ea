from pathlib import Path
from typing import Any

import pytest
import torch

from fsae.export.dictionary_files import load_autoencoder, read_provenance
from tests.export.releases.weights import D_SAE, K, check, largest, weights

W = weights()
OPENAI: dict[str, Any] = {
    "encoder.weight": W["W_enc"].T,
    "decoder.weight": W["W_dec"].T,
    "latent_bias": W["b_enc"],
    "pre_bias": W["b_dec"],
    "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long),
}
TOPK = {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}


def write(file: Path, state: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)
    return file


def test_openai_s_topk_normalises_the_samples(tmp_path):
    def forward(x):
        mean, spread = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        codes = largest(((x - mean) / (spread + 1e-5) - W["b_dec"]) @ W["W_enc"] + W["b_enc"])
        return codes, (codes @ W["W_dec"] + W["b_dec"]) * spread + mean

    check(write(tmp_path / "5.pt", OPENAI | TOPK), forward)


def test_openai_s_relu_does_not(tmp_path):
    def forward(x):
        codes = ((x - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).relu()
        return codes, codes @ W["W_dec"] + W["b_dec"]

    check(write(tmp_path / "5.pt", OPENAI | {"activation": "ReLU"}), forward)


@pytest.mark.parametrize(
    ("place", "hook"),
    [
        ("resid_post_mlp_v5_32k", "blocks.5.hook_resid_post"),
        ("resid_post_attn_v5_128k", "blocks.5.hook_resid_mid"),
        ("resid_delta_mlp_v5_32k", "blocks.5.hook_mlp_out"),
        ("resid_delta_attn", "blocks.5.hook_attn_out"),
        ("mlp_post_act", None),
    ],
)
def test_openai_s_site_is_in_the_path(tmp_path, place, hook):
    said = read_provenance(write(tmp_path / place / "autoencoders" / "5.pt", OPENAI | TOPK))
    assert (said.model_name, said.hook_name) == ("gpt2", hook)


def test_qwen_scope_has_k_in_the_repository_s_name(tmp_path):
    state = {"W_enc": W["W_enc"].T, "W_dec": W["W_dec"].T, "b_enc": W["b_enc"], "b_dec": W["b_dec"]}
    file = write(tmp_path / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}" / "layer3.sae.pt", state)

    def forward(x):
        codes = largest(x @ W["W_enc"] + W["b_enc"])
        return codes, codes @ W["W_dec"] + W["b_dec"]

    check(file, forward)
    said = read_provenance(file)
    assert (said.model_name, said.hook_name) == ("Qwen/Qwen3-1.7B-Base", "blocks.3.hook_resid_post")
    with pytest.raises(ValueError, match="the number of active latents in the repository's name alone"):
        load_autoencoder(write(tmp_path / "mine" / "layer3.sae.pt", state))


@pytest.mark.parametrize(
    ("file", "prefix", "model"),
    [
        ("Llama-3.3-70B-Instruct-SAE-l50.pt", "_linear", "meta-llama/Llama-3.3-70B-Instruct"),
        ("DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", "", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
    ],
)
def test_linear_layers_are_a_relu_dictionary(tmp_path, file, prefix, model):
    state = {
        f"encoder{prefix}.weight": W["W_enc"].T,
        f"encoder{prefix}.bias": W["b_enc"],
        f"decoder{prefix}.weight": W["W_dec"].T,
        f"decoder{prefix}.bias": W["b_dec"],
    }

    def forward(x):
        codes = (x @ W["W_enc"] + W["b_enc"]).relu()
        return codes, codes @ W["W_dec"] + W["b_dec"]

    check(write(tmp_path / file, state), forward)
    said = read_provenance(tmp_path / file)
    assert said.model_name == model
    assert said.hook_name == ("blocks.50.hook_resid_post" if prefix else "blocks.19.hook_resid_post")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (OPENAI | {"activation": "Identity"}, "activation is 'Identity', which is not supported"),
        (OPENAI | TOPK | {"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, "postact_fn is 'Identity'"),
        (OPENAI | TOPK | {"activation_state_dict": {}}, "k is None"),
        ({"a": torch.zeros(2)}, "5.pt holds a, so no known project has made it"),
        ({}, "5.pt holds nothing"),
    ],
)
def test_other_files_are_refused(tmp_path, state, message):
    file = write(tmp_path / "5.pt", state)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(file)

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fsae.export.dictionary_files import load_autoencoder, read_provenance
from tests.export.releases.weights import D_IN, D_SAE, K, check, largest, weights

HYPERPARAMETERS = {
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.3,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 4.0, "out": 4.0},
    "sparsity_include_decoder_norm": False,
    "apply_decoder_bias_to_pre_encoder": False,
    "d_model": D_IN,
    "d_sae": D_SAE,
    "hook_point_in": "blocks.15.hook_resid_post",
    "hook_point_out": "blocks.15.hook_resid_post",
}
SCALE = math.sqrt(D_IN) / 4.0


def llama_scope(folder: Path, **changes) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    w = weights()
    linear = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    tensors = {name: tensor.contiguous() for name, tensor in (linear | {"decoder.bias": w["b_dec"]}).items()}
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(HYPERPARAMETERS | changes))
    return folder


@pytest.mark.parametrize("by_norm", [False, True])
def test_llama_scope_compares_raw_pre_activations_with_its_threshold(tmp_path, by_norm):
    """Llama Scope's numbers are of inputs times s, and its threshold is of raw ones: theta s."""
    w = weights()

    def forward(x):
        pre = (x * SCALE) @ w["W_enc"] + w["b_enc"]
        scores = pre * w["W_dec"].norm(dim=1) if by_norm else pre
        codes = pre * (scores > 0.3 * SCALE)
        return codes, (codes @ w["W_dec"] + w["b_dec"]) / SCALE

    check(llama_scope(tmp_path / "L15R", sparsity_include_decoder_norm=by_norm), forward)


def test_a_bias_before_the_encoder(tmp_path):
    w = weights()

    def forward(x):
        pre = (x * SCALE - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        codes = pre * (pre > 0.3 * SCALE)
        return codes, (codes @ w["W_dec"] + w["b_dec"]) / SCALE

    check(llama_scope(tmp_path / "L15R", apply_decoder_bias_to_pre_encoder=True), forward)


def test_the_model_is_read_from_the_path(tmp_path):
    said = read_provenance(llama_scope(tmp_path / "Llama3_1-8B-Base-LXR-8x" / "Llama3_1-8B-Base-L15R-8x"))
    assert (said.model_name, said.hook_name) == ("meta-llama/Llama-3.1-8B", "blocks.15.hook_resid_post")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "batchtopk"}, "act_fn is 'batchtopk', which is not supported; known are relu, jumprelu, topk"),
        ({"norm_activation": "batch-wise"}, "norm_activation is 'batch-wise'"),
        ({"use_glu_encoder": True}, "use_glu_encoder is True"),
        ({"dataset_average_activation_norm": {"in": 4.0}}, "dataset_average_activation_norm of out is None"),
        ({"dataset_average_activation_norm": {"in": 0, "out": 4.0}}, "of in is 0; it must be a positive number"),
        ({"jump_relu_threshold": None}, "jump_relu_threshold is None"),
        ({"d_model": "6"}, "d_model is '6'"),
        ({"d_model": 7}, r"W_enc is \(32, 64\), by hyperparams.json it should be \(7, 64\)"),
    ],
)
def test_settings_that_cannot_be_honoured(tmp_path, changes, message):
    folder = llama_scope(tmp_path / "a", **changes)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(folder)


NEW = {
    "sae_type": "sae",
    "act_fn": "jumprelu",
    "norm_activation": "inference",
    "sparsity_include_decoder_norm": True,
    "d_model": D_IN,
    "expansion_factor": D_SAE / D_IN,
    "hook_point_in": "blocks.3.hook_resid_post",
    "hook_point_out": "blocks.3.hook_resid_post",
}


def openmoss(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **changes) -> Path:
    folder.mkdir(parents=True)
    w = weights()
    stored = {"W_E": w["W_enc"], "b_E": w["b_enc"], "W_D": w["W_dec"], "b_D": w["b_dec"]}
    if (NEW | changes)["act_fn"] == "jumprelu":
        stored["activation_function.log_jumprelu_threshold"] = w["threshold"].log()
    stored["dataset_average_activation_norm.blocks.3.hook_resid_post"] = torch.tensor(4.0)
    save_file(stored if tensors is None else tensors, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(NEW | changes))
    return folder


@pytest.mark.parametrize("norm", ["inference", "dataset-wise", "token-wise"])
@pytest.mark.parametrize("by_norm", [False, True])
def test_openmoss_learns_the_log_of_thresholds(tmp_path, norm, by_norm):
    w = weights()

    def forward(x):
        scale = {"inference": torch.ones(()), "dataset-wise": torch.tensor(SCALE)}.get(
            norm, math.sqrt(D_IN) / x.norm(dim=1, keepdim=True)
        )
        pre = (x * scale) @ w["W_enc"] + w["b_enc"]
        scores = pre * w["W_dec"].norm(dim=1) if by_norm else pre
        codes = pre * (scores > w["threshold"])
        return codes, (codes @ w["W_dec"] + w["b_dec"]) / scale

    check(openmoss(tmp_path / "a", norm_activation=norm, sparsity_include_decoder_norm=by_norm), forward)


def test_topk_by_norm_has_unit_rows(tmp_path):
    w = weights()

    def forward(x):
        norms = w["W_dec"].norm(dim=1)
        # OpenMOSS divides by the norms again; here codes are lengths.
        lengths = largest((x @ w["W_enc"] + w["b_enc"]) * norms)
        return lengths, (lengths / norms) @ w["W_dec"] + w["b_dec"]

    check(openmoss(tmp_path / "a", act_fn="topk", top_k=K), forward)


def test_the_names_of_linear_layers_are_read(tmp_path):
    w = weights()
    linear = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    tensors = linear | {"decoder.bias": w["b_dec"], "log_jumprelu_threshold": w["threshold"].log()}
    folder = openmoss(
        tmp_path / "a",
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        norm_activation="dataset-wise",
        sparsity_include_decoder_norm=False,
        dataset_average_activation_norm={"blocks.3.hook_resid_post": 4.0},
    )

    def forward(x):
        pre = (x * SCALE) @ w["W_enc"] + w["b_enc"]
        codes = pre * (pre > w["threshold"])
        return codes, (codes @ w["W_dec"] + w["b_dec"]) / SCALE

    check(folder, forward)
    assert read_provenance(folder).hook_name == "blocks.3.hook_resid_post"


def test_another_site_of_the_target_is_read(tmp_path):
    folder = llama_scope(tmp_path / "a", hook_point_out="blocks.16.hook_resid_post")
    assert read_provenance(folder).hook_name_out == "blocks.16.hook_resid_post"


def test_a_crosscoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sae_type is 'crosscoder', which is not supported; known are sae"):
        load_autoencoder(openmoss(tmp_path / "a", sae_type="crosscoder"))

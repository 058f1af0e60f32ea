import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsae.export.between import saelens_form
from fsae.export.dictionary_files import load_autoencoder, read_provenance
from tests.architectures import relative_error
from tests.export.releases.weights import D_IN, D_SAE, K, check, drawn, largest, weights

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


BETWEEN = {"hook_point_in": "blocks.15.ln2.hook_normalized", "hook_point_out": "blocks.15.hook_mlp_out"}


@pytest.mark.parametrize("centred", [False, True])
def test_llama_scope_has_transcoders(tmp_path, centred):
    w, to_input, to_target = weights(), math.sqrt(D_IN) / 4.0, math.sqrt(D_IN) / 9.0

    def forward(x):
        pre = (x * to_input - (w["b_dec"] if centred else 0)) @ w["W_enc"] + w["b_enc"]
        codes = pre * (pre > 0.3 * to_input)
        return codes, (codes @ w["W_dec"] + w["b_dec"]) / to_target

    norms = {"in": 4.0, "out": 9.0}
    changes = BETWEEN | {"dataset_average_activation_norm": norms, "apply_decoder_bias_to_pre_encoder": centred}
    folder = llama_scope(tmp_path / "L15TC", **changes)
    check(folder, forward)
    said = read_provenance(folder)
    assert (said.hook_name, said.hook_name_out) == (BETWEEN["hook_point_in"], BETWEEN["hook_point_out"])


@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("by_norm", [False, True])
def test_openmoss_has_transcoders(tmp_path, act_fn, by_norm):
    w, to_input, to_target = weights(), math.sqrt(D_IN) / 4.0, math.sqrt(D_IN) / 9.0
    norms = dict(zip(BETWEEN.values(), (4.0, 9.0), strict=True))
    changes = {
        "act_fn": act_fn,
        "top_k": K,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": by_norm,
    }
    folder = openmoss(tmp_path / "a", **BETWEEN, **changes, dataset_average_activation_norm=norms)

    def forward(x):
        pre = (x * to_input) @ w["W_enc"] + w["b_enc"]
        lengths = w["W_dec"].norm(dim=1) if by_norm else torch.ones(D_SAE)
        scores = pre * lengths
        if act_fn == "topk":
            codes = largest(scores) / lengths
        else:
            codes = pre * (scores > (w["threshold"] if act_fn == "jumprelu" else 0))
        reconstruction = (codes @ w["W_dec"] + w["b_dec"]) / to_target
        # Codes that are selected by their length have this unit, in that of the targets.
        return codes * lengths / to_target if act_fn == "topk" and by_norm else codes, reconstruction

    check(folder, forward)


@pytest.mark.parametrize("write", [openmoss, llama_scope])
def test_a_transcoder_is_written_as_one(tmp_path, write):
    autoencoder = load_autoencoder(write(tmp_path / "a", **BETWEEN, norm_activation="inference"))
    assert not autoencoder.ends.same
    assert saelens_form(autoencoder).architecture == "jumprelu_transcoder"


@pytest.mark.parametrize("write", [openmoss, llama_scope])
def test_layertopk_is_refused_without_layers(tmp_path, write):
    with pytest.raises(ValueError, match="act_fn is 'layertopk', which OpenMOSS has for cross-layer transcoders alone"):
        load_autoencoder(write(tmp_path / "a", act_fn="layertopk", top_k=K))


@pytest.mark.parametrize("kind", ["molt", "lorsa"])
def test_other_kinds_are_refused(tmp_path, kind):
    with pytest.raises(ValueError, match=f"sae_type is '{kind}', which is not supported; known are sae, crosscoder"):
        load_autoencoder(openmoss(tmp_path / "a", sae_type=kind))


def test_a_damaged_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"sae_type is \['clt'\], which is not supported; known are sae, crosscoder"):
        load_autoencoder(openmoss(tmp_path / "a", sae_type=["clt"]))


HOOKS = ["blocks.3.hook_resid_post", "blocks.5.hook_resid_post", "blocks.7.hook_resid_post"]
NORMS = (4.0, 7.0, 11.0)
LATENTS = 2 * D_IN


def crosscoder(folder: Path, sites: int = 3, tensors: dict[str, torch.Tensor] | None = None, **changes) -> Path:
    config = NEW | {"sae_type": "crosscoder", "hook_points": HOOKS[:sites], "expansion_factor": 2.0} | changes
    del config["hook_point_in"], config["hook_point_out"]
    stored = {
        "W_E": drawn(sites, D_IN, LATENTS),
        "b_E": drawn(sites, LATENTS, by=0.2),
        "W_D": drawn(sites, LATENTS, D_IN, seed=1),
        "b_D": drawn(sites, D_IN, seed=2),
    }
    if config["act_fn"] == "jumprelu":
        stored["activation_function.log_jumprelu_threshold"] = drawn(LATENTS, seed=3).abs().log()
    for hook, norm in zip(HOOKS[:sites], NORMS, strict=False):
        stored[f"dataset_average_activation_norm.{hook}"] = torch.tensor(norm)
    folder.mkdir(parents=True)
    save_file(stored if tensors is None else tensors, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def their_crosscoder(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (batch, sites, latents) and reconstruction by OpenMOSS' definition, site by site."""
    config, stored = json.loads((folder / "config.json").read_text()), load_file(folder / "sae_weights.safetensors")
    scaled = config["norm_activation"] == "dataset-wise"
    scales = [math.sqrt(D_IN) / norm if scaled else 1.0 for norm in NORMS[: len(stored["W_E"])]]
    vectors = x.split(D_IN, dim=1)
    pre = sum(v * s @ W + b for v, s, W, b in zip(vectors, scales, stored["W_E"], stored["b_E"], strict=True))
    codes, found = [], []
    for rows, bias, s in zip(stored["W_D"], stored["b_D"], scales, strict=True):
        norms = rows.norm(dim=1)
        gated = (pre * norms).relu()
        if config["act_fn"] == "jumprelu":
            gated = gated * (gated > stored["activation_function.log_jumprelu_threshold"].exp())
        if config["act_fn"] == "topk":
            gated = largest(pre * norms)
        codes.append(gated / norms)
        found.append((codes[-1] @ rows + bias) / s)
    return torch.stack(codes, dim=1), torch.cat(found, dim=1)


@pytest.mark.parametrize("norm", ["inference", "dataset-wise"])
@pytest.mark.parametrize("sites", [1, 3])
@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
def test_a_crosscoder_has_a_gate_per_site(tmp_path, act_fn, sites, norm):
    folder = crosscoder(tmp_path / "a", sites, act_fn=act_fn, norm_activation=norm, top_k=K)
    x = drawn(60, sites * D_IN, by=2.0)
    theirs, reconstruction = their_crosscoder(folder, x)
    autoencoder = load_autoencoder(folder)
    record = autoencoder(x)
    assert relative_error(record.reconstruction, reconstruction) < 1e-5
    codes = record.codes.dense()
    if act_fn == "topk":
        # What is selected by its length has this as its code.
        theirs = theirs * load_file(folder / "sae_weights.safetensors")["W_D"].norm(dim=2)
    assert relative_error(codes, theirs[:, 0] if act_fn == "relu" else theirs.flatten(1)) < 1e-5
    assert 0 < (codes != 0).float().mean() < 1
    assert autoencoder.ends.input.widths == [D_IN] * sites
    assert read_provenance(folder).hooks_in == HOOKS[:sites]


def test_a_latent_may_be_on_at_one_site_alone_by_hand(tmp_path):
    # Pre-activation 2; rows of the norms 2 and 1, and a threshold of 3: 2 * 2 > 3, and 2 * 1 is not.
    tensors = {
        "W_E": torch.tensor([[[1.0]], [[1.0]]]),
        "b_E": torch.tensor([[0.5], [-0.5]]),
        "W_D": torch.tensor([[[-2.0]], [[1.0]]]),
        "b_D": torch.tensor([[0.0], [7.0]]),
        "activation_function.log_jumprelu_threshold": torch.tensor([3.0]).log(),
    }
    folder = crosscoder(tmp_path / "a", 2, tensors, d_model=1, expansion_factor=1)
    record = load_autoencoder(folder)(torch.tensor([[5.0, -3.0]]))
    assert record.codes.dense().tolist() == [[2, 0]]
    assert record.reconstruction.tolist() == [[-4, 7]]


def test_each_site_selects_latents_of_its_own_by_hand(tmp_path):
    # Pre-activations (2, 3). Rows of the norms (2, 1) at the first site: 4 wins over 3. At the second (1, 1): 3 over 2.
    tensors = {
        "W_E": torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]),
        "b_E": torch.zeros(2, 2),
        "W_D": torch.tensor([[[-2.0], [1.0]], [[1.0], [-1.0]]]),
        "b_D": torch.tensor([[0.0], [7.0]]),
    }
    folder = crosscoder(tmp_path / "a", 2, tensors, act_fn="topk", top_k=1, d_model=1, expansion_factor=2)
    record = load_autoencoder(folder)(torch.tensor([[2.0, 3.0]]))
    assert record.codes.dense().tolist() == [[4, 0, 0, 3]]
    assert record.reconstruction.tolist() == [[-4, 4]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_points": None}, "hook_points is None; it must list the names of sites"),
        ({"hook_points": HOOKS[:2]}, r"W_E is \(3, 32, 64\), by config.json it should be \(2, 32, 64\)"),
        ({"act_fn": "batchtopk"}, "act_fn is 'batchtopk', which is not supported"),
        ({"act_fn": "layertopk", "top_k": K}, "act_fn is 'layertopk', which OpenMOSS has for cross-layer transcoders"),
        ({"norm_activation": "token-wise"}, "normalize_activations is 'constant_norm_rescale', which is not supported"),
        ({"sparsity_include_decoder_norm": False}, "sparsity_include_decoder_norm is False; it is true for every"),
    ],
)
def test_a_crosscoder_of_other_settings_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_autoencoder(crosscoder(tmp_path / "a", **changes))


OF_LAYER, LAYERS = 2 * D_IN, 3
READ = [f"blocks.{layer}.ln2.hook_normalized" for layer in range(LAYERS)]
WRITTEN = [f"blocks.{layer}.hook_mlp_out" for layer in range(LAYERS)]


def cross_layer(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **changes) -> Path:
    config = NEW | {"sae_type": "clt", "hook_points_in": READ, "hook_points_out": WRITTEN, "expansion_factor": 2}
    config |= changes
    del config["hook_point_in"], config["hook_point_out"]
    stored = {"W_E": drawn(LAYERS, D_IN, OF_LAYER), "b_E": drawn(LAYERS, OF_LAYER, by=0.2)}
    for layer in range(LAYERS):
        stored |= {f"W_D.{layer}": drawn(layer + 1, OF_LAYER, D_IN), f"b_D.{layer}": drawn(D_IN, seed=layer)}
    if config["act_fn"] == "jumprelu":
        stored["activation_function.log_jumprelu_threshold"] = (8 * drawn(LAYERS, OF_LAYER, seed=3).abs()).log()
    for number, hook in enumerate(READ + WRITTEN):
        stored[f"dataset_average_activation_norm.{hook}"] = torch.tensor(4.0 + number)
    folder.mkdir(parents=True)
    save_file(stored if tensors is None else tensors, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def their_cross_layer(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (batch, layers * latents), the norms of their rows, and reconstruction by OpenMOSS' definition."""
    config, stored = json.loads((folder / "config.json").read_text()), load_file(folder / "sae_weights.safetensors")
    scaled = config["norm_activation"] == "dataset-wise"
    scale = {
        hook: math.sqrt(D_IN) / stored[f"dataset_average_activation_norm.{hook}"].item() if scaled else 1.0
        for hook in READ + WRITTEN
    }
    squares = torch.zeros(LAYERS, OF_LAYER)
    for layer in range(LAYERS):
        squares[: layer + 1] += stored[f"W_D.{layer}"].square().sum(2)
    norms = squares.sqrt() if config["sparsity_include_decoder_norm"] else torch.ones(LAYERS, OF_LAYER)
    vectors = [v * scale[hook] for v, hook in zip(x.split(D_IN, dim=1), READ, strict=True)]
    pre = torch.stack([v @ W for v, W in zip(vectors, stored["W_E"], strict=True)], dim=1) + stored["b_E"]
    gated = (pre * norms).relu()
    if config["act_fn"] == "jumprelu":
        gated = gated * (gated > stored["activation_function.log_jumprelu_threshold"].exp())
    if config["act_fn"] == "layertopk":
        gated = largest((pre * norms).flatten(1)).view_as(gated)
    if config["act_fn"] == "topk":
        gated = torch.stack([largest(scores) for scores in (pre * norms).unbind(1)], dim=1)
    codes = gated / norms
    found = []
    for layer, hook in enumerate(WRITTEN):
        rows = stored[f"W_D.{layer}"]
        written = sum(codes[:, source] @ rows[source] for source in range(layer + 1)) + stored[f"b_D.{layer}"]
        found.append(written / scale[hook])
    return codes.flatten(1), norms.flatten(), torch.cat(found, dim=1)


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("norm", ["inference", "dataset-wise"])
@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk", "layertopk"])
def test_a_cross_layer_transcoder_has_a_gate_per_latent(tmp_path, act_fn, norm, by_norm):
    changes = {"act_fn": act_fn, "norm_activation": norm, "sparsity_include_decoder_norm": by_norm, "top_k": K}
    folder, x = cross_layer(tmp_path / "a", **changes), drawn(60, LAYERS * D_IN, by=2.0)
    codes, norms, reconstruction = their_cross_layer(folder, x)
    record = load_autoencoder(folder)(x)
    assert 0 < (codes != 0).float().mean() < 1
    assert relative_error(record.reconstruction, reconstruction) < 1e-5
    # What is selected by its length has this as its code.
    assert relative_error(record.codes.dense(), codes * norms if "topk" in act_fn else codes) < 1e-5
    said = read_provenance(folder)
    assert (said.hooks_in, said.hooks_out) == (READ, WRITTEN)


def test_a_cross_layer_transcoder_has_biases_whatever_its_config_says(tmp_path):
    folder, x = cross_layer(tmp_path / "a", use_decoder_bias=False), drawn(60, LAYERS * D_IN, by=2.0)
    assert relative_error(load_autoencoder(folder)(x).reconstruction, their_cross_layer(folder, x)[2]) < 1e-5


def test_a_cross_layer_transcoder_writes_later_layers_by_hand(tmp_path):
    # Codes (2, 3): the first layer gets 2 * 1, the second one 2 * .5 + 3 * 2.
    tensors = {
        "W_E": torch.ones(2, 1, 1),
        "b_E": torch.zeros(2, 1),
        "W_D.0": torch.tensor([[[1.0]]]),
        "W_D.1": torch.tensor([[[0.5]], [[2.0]]]),
        "b_D.0": torch.zeros(1),
        "b_D.1": torch.zeros(1),
    }
    sites = {"hook_points_in": READ[:2], "hook_points_out": WRITTEN[:2]}
    folder = cross_layer(tmp_path / "a", tensors, act_fn="relu", d_model=1, expansion_factor=1, **sites)
    record = load_autoencoder(folder)(torch.tensor([[2.0, 3.0]]))
    assert record.codes.dense().tolist() == [[2, 3]]
    assert record.reconstruction.tolist() == [[2, 7]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_points_out": WRITTEN[:2]}, "hook_points_in names 3 sites, and hook_points_out 2"),
        ({"expansion_factor": 1}, r"W_E is \(3, 32, 64\), by config.json it should be \(3, 32, 32\)"),
    ],
)
def test_a_cross_layer_transcoder_of_other_settings_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_autoencoder(cross_layer(tmp_path / "a", **{"top_k": K, **changes}))

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fsae.export.dictionary_files import load_autoencoder, read_provenance
from tests.export.releases.weights import D_IN, D_SAE, K, check, drawn, largest, weights

W = weights()
LINEAR = {"encoder.weight": W["W_enc"].T, "decoder.weight": W["W_dec"].T}
PLAIN = {name: W[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
GATED = {"gate_bias": drawn(D_SAE, seed=1), "mag_bias": drawn(D_SAE, seed=2), "r_mag": drawn(D_SAE, seed=3)}
NORMS = W["W_dec"].norm(dim=1)
ONE = torch.tensor(0.6)


def decoded(codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return codes, codes @ W["W_dec"] + W["b_dec"]


def centred(x: torch.Tensor) -> torch.Tensor:
    return (x - W["b_dec"]) @ W["W_enc"]


def gated(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    products = centred(x)
    codes = (products + GATED["gate_bias"] > 0) * (GATED["r_mag"].exp() * products + GATED["mag_bias"]).relu()
    return codes * NORMS, decoded(codes)[1]


def jumped(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pre = x @ W["W_enc"] + W["b_enc"]
    codes = (pre * (pre > W["threshold"])).relu()
    return codes * NORMS, decoded(codes)[1]


def thresholded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes = (centred(x) + W["b_enc"]).relu()
    return decoded(codes * (codes > ONE))


# The state of each class, and its forward.
CLASSES: dict[str, tuple[dict[str, Any], Any]] = {
    "AutoEncoder": (
        LINEAR | {"encoder.bias": W["b_enc"], "bias": W["b_dec"]},
        lambda x: decoded((centred(x) + W["b_enc"]).relu()),
    ),
    "AutoEncoderNew": (
        LINEAR | {"encoder.bias": W["b_enc"], "decoder.bias": W["b_dec"]},
        lambda x: decoded((x @ W["W_enc"] + W["b_enc"]).relu()),
    ),
    "GatedAutoEncoder": (LINEAR | GATED | {"decoder_bias": W["b_dec"]}, gated),
    # The threshold that it saves is not used.
    "AutoEncoderTopK": (
        LINEAR
        | {"encoder.bias": W["b_enc"], "b_dec": W["b_dec"], "k": torch.tensor(K), "threshold": torch.tensor(9.0)},
        lambda x: decoded(largest(centred(x) + W["b_enc"])),
    ),
    "BatchTopKSAE": (
        LINEAR | {"encoder.bias": W["b_enc"], "b_dec": W["b_dec"], "k": torch.tensor(K), "threshold": ONE},
        thresholded,
    ),
    "MatryoshkaBatchTopKSAE": (
        PLAIN | {"k": torch.tensor(K), "threshold": ONE, "group_sizes": torch.tensor([24, 40])},
        thresholded,
    ),
    "JumpReluAutoEncoder": (PLAIN | {"threshold": W["threshold"]}, jumped),
}


def write(folder: Path, name: str, state: dict[str, Any] | None = None, **trainer) -> Path:
    folder.mkdir(parents=True)
    torch.save(CLASSES[name][0] if state is None else state, folder / "ae.pt")
    settings = {"dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "k": K, "layer": 8}
    settings |= {"lm_name": "EleutherAI/pythia-160m-deduped", "submodule_name": "resid_post_layer_8"} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": settings, "buffer": {"ctx_len": 1024}}))
    return folder


@pytest.mark.parametrize("name", CLASSES)
def test_it_computes_what_the_class_does(tmp_path, name):
    check(write(tmp_path / "trainer_0", name), CLASSES[name][1])


def test_a_threshold_before_the_first_estimate_lets_every_code_pass(tmp_path):
    state = CLASSES["BatchTopKSAE"][0] | {"threshold": torch.tensor(-1.0)}
    check(write(tmp_path / "a", "BatchTopKSAE", state), lambda x: decoded((centred(x) + W["b_enc"]).relu()))


def test_model_and_site_are_read_from_its_config(tmp_path):
    said = read_provenance(write(tmp_path / "trainer_0", "AutoEncoder"))
    assert (said.model_name, said.hook_name) == ("EleutherAI/pythia-160m-deduped", "blocks.8.hook_resid_post")
    assert said.context_size == 1024
    of_mlp = write(tmp_path / "trainer_1", "AutoEncoder", submodule_name="mlp_out_layer_8")
    assert read_provenance(of_mlp).hook_name == "blocks.8.hook_mlp_out"


def test_unknown_classes_are_refused(tmp_path):
    folder = write(tmp_path / "trainer_0", "AutoEncoder", dict_class="IdentityDict")
    with pytest.raises(ValueError, match="dict_class is 'IdentityDict', which is not supported; known are Auto"):
        load_autoencoder(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": None}, r"ae.pt has no tensor bias; it holds decoder.weight, encoder.bias, encoder.weight"),
        ({"encoder.weight": W["W_enc"]}, r"W_enc is \(64, 32\), by config.json it should be \(32, 64\)"),
        ({"encoder.weight": W["b_enc"]}, r"encoder.weight is \(64,\); it must be a matrix"),
        ({"more": ONE}, r"ae.pt holds more, which this kind"),
    ],
)
def test_wrong_tensors(tmp_path, changes, message):
    state = {name: value for name, value in (CLASSES["AutoEncoder"][0] | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_autoencoder(write(tmp_path / "trainer_0", "AutoEncoder", state))

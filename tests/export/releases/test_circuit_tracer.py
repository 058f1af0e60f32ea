from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fsae.export.dictionary_files import load_autoencoder, read_provenance
from fsae.export.releases.circuit_tracer import files_of
from tests.export.releases.weights import check, weights


def write(folder: Path, text: str = "model_kind: transcoder_set\nmodel_name: google/gemma-2-2b\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    w = weights()
    tensors = {"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    save_file(tensors, folder / "layer_5.safetensors")
    (folder / "config.yaml").write_text(text)
    return folder / "layer_5.safetensors"


def test_it_computes_what_circuit_tracer_does(tmp_path):
    w = weights()

    def forward(x):
        codes = (x @ w["W_enc"] + w["b_enc"]).relu()
        return codes, codes @ w["W_dec"] + w["b_dec"]

    check(write(tmp_path), forward)


def test_a_config_of_other_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model_kind is 'cross_layer_transcoder', but the files next to it are those"):
        load_autoencoder(write(tmp_path, "model_kind: cross_layer_transcoder\n"))


def write_cross_layer(folder: Path, **changes: torch.Tensor) -> Path:
    """The example of two layers of one latent and one dimension."""
    folder.mkdir(exist_ok=True)
    tensors = {
        "W_enc_0": {"W_enc_0": torch.ones(1, 1), "b_enc_0": torch.zeros(1), "b_dec_0": torch.zeros(1)},
        "W_enc_1": {"W_enc_1": torch.ones(1, 1), "b_enc_1": torch.zeros(1), "b_dec_1": torch.zeros(1)},
        "W_dec_0": {"W_dec_0": torch.tensor([[[1.0], [0.5]]])},
        "W_dec_1": {"W_dec_1": torch.tensor([[[2.0]]])},
    }
    for name, own in tensors.items():
        save_file({each: changes.get(each, tensor) for each, tensor in own.items()}, folder / f"{name}.safetensors")
    return folder


def test_a_cross_layer_transcoder_writes_later_layers_by_hand(tmp_path):
    # Codes (2, 3): the first layer gets 2 * 1, the second one 2 * .5 + 3 * 2.
    record = load_autoencoder(write_cross_layer(tmp_path))(torch.tensor([[2.0, 3.0]]))
    assert record.codes.dense().tolist() == [[2, 3]]
    assert record.reconstruction.tolist() == [[2, 7]]


def test_a_cross_layer_transcoder_with_other_shapes_or_files_is_refused(tmp_path):
    write_cross_layer(tmp_path, W_dec_0=torch.ones(1, 1, 1))
    with pytest.raises(ValueError, match=r"W_dec_0 is \(1, 1, 1\), by W_enc_0.safetensors it should be \(1, 2, 1\)"):
        load_autoencoder(tmp_path)
    (tmp_path / "W_dec_0.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no W_dec_0.safetensors"):
        load_autoencoder(tmp_path)
    write_cross_layer(tmp_path, W_enc_0=torch.ones(3))
    with pytest.raises(ValueError, match=r"has no tensor W_enc_0 of 2 dimensions"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("text", ["a: [", "- 1", "!!python/object/apply:os.system [ls]"])
def test_a_damaged_config(tmp_path, text):
    with pytest.raises(ValueError, match=r"config.yaml (is damaged|holds list).*download it again"):
        load_autoencoder(write(tmp_path, text))


def test_a_truncated_file(tmp_path):
    file = write(tmp_path)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"layer_5.safetensors is truncated or damaged"):
        load_autoencoder(file)


def test_w_skip_is_applied_as_its_rows_by_hand(tmp_path):
    # f = relu(1 * 1 + 2 * .5) = 2, and 2 (1, 1) + (0, 1) + W_skip x with rows (1, 1), (0, 1); transposed it is (3, 6).
    tensors = {
        "W_enc": torch.tensor([[1.0, 0.5]]),
        "b_enc": torch.zeros(1),
        "W_dec": torch.ones(1, 2),
        "b_dec": torch.tensor([0.0, 1.0]),
        "W_skip": torch.tensor([[1.0, 1.0], [0.0, 1.0]]),
    }
    save_file(tensors, tmp_path / "layer_0.safetensors")
    transcoder = load_autoencoder(tmp_path / "layer_0.safetensors")
    assert transcoder(torch.tensor([[1.0, 2.0]])).reconstruction.tolist() == [[5, 5]]
    written = files_of(transcoder, [0], tmp_path)["layer_0.safetensors"]
    assert all(torch.equal(tensor, written[name]) for name, tensor in tensors.items())


def test_without_a_config_the_site_is_open(tmp_path):
    file = write(tmp_path)
    assert read_provenance(file).hook_name is None
    (tmp_path / "config.yaml").write_text("feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n")
    found = read_provenance(file)
    assert (found.hook_name, found.hook_name_out) == ("blocks.5.mlp.hook_in", "blocks.5.hook_mlp_out")

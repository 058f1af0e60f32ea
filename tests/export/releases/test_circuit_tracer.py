from pathlib import Path

import pytest
from safetensors.torch import save_file

from fsae.export.dictionary_files import load_autoencoder
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


def test_a_cross_layer_transcoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model_kind is 'cross_layer_transcoder'"):
        load_autoencoder(write(tmp_path, "model_kind: cross_layer_transcoder\n"))


@pytest.mark.parametrize("text", ["a: [", "- 1", "!!python/object/apply:os.system [ls]"])
def test_a_damaged_config(tmp_path, text):
    with pytest.raises(ValueError, match=r"config.yaml (is damaged|holds list).*download it again"):
        load_autoencoder(write(tmp_path, text))


def test_a_truncated_file(tmp_path):
    file = write(tmp_path)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"layer_5.safetensors is truncated or damaged"):
        load_autoencoder(file)

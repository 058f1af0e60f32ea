from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fsae.export.dictionary_files import load_autoencoder, read_provenance
from tests.export.releases.weights import D_IN, check, weights


def write(root: Path, inner: str = "layer_12/width_16k/average_l0_82", **changes) -> Path:
    folder = root / inner
    folder.mkdir(parents=True)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in weights().items()} | changes
    np.savez(folder / "params.npz", **{name: array for name, array in arrays.items() if array is not None})
    return folder


def forward(x):
    w = weights()
    pre = x @ w["W_enc"] + w["b_enc"]
    codes = (pre > w["threshold"]) * pre.relu()
    return codes, codes @ w["W_dec"] + w["b_dec"]


def test_it_computes_what_gemma_scope_defines(tmp_path):
    check(write(tmp_path), forward)


def test_names_in_small_letters_are_read(tmp_path):
    w = {name: tensor.numpy() for name, tensor in weights().items()}
    folder = write(tmp_path, W_enc=None, W_dec=None, w_enc=w["W_enc"], w_dec=w["W_dec"])
    check(folder, forward)


@pytest.mark.parametrize(
    ("repository", "model", "hook"),
    [
        ("gemma-scope-2b-pt-res", "google/gemma-2-2b", "blocks.12.hook_resid_post"),
        ("gemma-scope-9b-it-res", "google/gemma-2-9b-it", "blocks.12.hook_resid_post"),
        ("gemma-scope-2b-pt-mlp", "google/gemma-2-2b", "blocks.12.hook_mlp_out"),
        ("gemma-scope-27b-pt-att", "google/gemma-2-27b", "blocks.12.attn.hook_z"),
        ("models--google--gemma-scope-2b-pt-res/snapshots/1f", "google/gemma-2-2b", "blocks.12.hook_resid_post"),
    ],
)
def test_model_and_site_are_read_from_the_path(tmp_path, repository, model, hook):
    said = read_provenance(write(tmp_path / repository))
    assert (said.model_name, said.hook_name, said.prepend_bos) == (model, hook, True)


def test_a_path_that_names_nothing_leaves_them_open(tmp_path):
    said = read_provenance(write(tmp_path, "mine"))
    assert (said.model_name, said.hook_name) == (None, None)


def test_embeddings_are_multiplied_by_the_root_of_the_width(tmp_path):
    folder = write(tmp_path / "gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6")

    def scaled(x):
        codes, reconstruction = forward(x / D_IN**0.5)
        return codes, reconstruction * D_IN**0.5

    check(folder, scaled)


def test_a_transcoder_has_two_sites(tmp_path):
    folder = write(tmp_path / "gemma-scope-2b-pt-transcoders")
    check(folder, forward)
    assert read_provenance(folder).hook_name_out == "blocks.12.hook_mlp_out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_enc": weights()["W_enc"].T.numpy()}, r"by average_l0_82 it should be"),
        ({"threshold": None}, r"params.npz has no tensor threshold; it holds W_dec, W_enc, b_dec, b_enc"),
        ({"b_enc": np.array([1.0] * 63 + [np.nan])}, r"1 of 64 numbers of b_enc are not finite"),
        ({"more": np.zeros(2)}, r"holds more, which this kind of dictionary has no use for"),
        ({"b_dec": np.array([{"a": 1}], dtype=object)}, r"holds more than numbers"),
    ],
)
def test_wrong_arrays(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_autoencoder(write(tmp_path, **changes))


def test_a_truncated_file(tmp_path):
    path = write(tmp_path) / "params.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"params.npz is truncated or damaged"):
        load_autoencoder(path.parent)


def test_halves_become_float32(tmp_path):
    halved: dict[str, Any] = {name: tensor.to(torch.float16).numpy() for name, tensor in weights().items()}
    autoencoder = load_autoencoder(write(tmp_path, **halved))
    assert autoencoder.W_dec.dtype == torch.float32

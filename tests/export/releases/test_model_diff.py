import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fsae.export.dictionary_files import load_autoencoder, read_provenance
from tests.export.releases.weights import D_IN, D_SAE, check, drawn

D_MODEL = D_IN // 2
FACTORS = [0.28, 0.24]
W = {
    "W_enc": drawn(2, D_MODEL, D_SAE),
    "W_dec": drawn(D_SAE, 2, D_MODEL),
    "b_enc": drawn(D_SAE, by=0.2),
    "b_dec": drawn(2, D_MODEL),
}


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"d_in": D_MODEL, "dict_size": D_SAE, "model_name": "gemma-2-2b", "hook_point": "blocks.14.hook_resid_pre"}
    (folder / "cfg.json").write_text(json.dumps(config | {"seq_len": 1024, "norm_scaling_factors": FACTORS} | changes))
    torch.save(W, folder / "cc_weights.pt")
    return folder


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = torch.tensor(FACTORS)[:, None]
    scaled = x.unflatten(1, (2, D_MODEL)) * scale
    codes = (torch.einsum("bmd,mdf->bf", scaled, W["W_enc"]) + W["b_enc"]).relu()
    return codes, ((torch.einsum("bf,fmd->bmd", codes, W["W_dec"]) + W["b_dec"]) / scale).flatten(1)


def test_it_computes_what_its_project_does(tmp_path: Path):
    check(write(tmp_path), forward)


def test_it_names_its_site(tmp_path: Path):
    found = read_provenance(write(tmp_path))
    assert (found.model_name, found.hook_name, found.context_size) == ("gemma-2-2b", "blocks.14.hook_resid_pre", 1024)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_scaling_factors": None}, "norm_scaling_factors is None; it must be the two numbers"),
        ({"norm_scaling_factors": [1.0, -1.0]}, "it must be the two numbers"),
        ({"dict_size": "many"}, "dict_size is 'many'"),
        ({"d_in": 5}, r"W_enc is \(2, 16, 64\), by cfg.json it should be \(2, 5, 64\)"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(tmp_path)

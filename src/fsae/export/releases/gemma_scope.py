"""Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147): `layer_12/width_16k/average_l0_82/params.npz`."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from fsae.export.releases.release import Release, in_path
from fsae.export.stored import Stored
from fsae.export.tensor_files import read_npz, renamed

_FILE = "params.npz"
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}

# gemma-scope-2b-pt-res, gemma-scope-9b-it-res, gemma-scope-2b-pt-transcoders, ...
_REPOSITORY = re.compile(r"gemma-scope-(?P<size>\d+b)-(?P<kind>pt|it)-(?P<site>res|mlp|att|transcoders)")
_HOOKS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z", "transcoders": "ln2.hook_normalized"}


def read_gemma_scope(folder: Path) -> Stored:
    """Return the dictionary in a folder of Gemma Scope; layer, site and model are in the folder's path alone."""
    weights = folder / _FILE
    return Stored(
        _config(folder), folder, weights, lambda: _tensors(weights, of_embedding="embedding" in in_path(folder))
    )


def _config(folder: Path) -> dict[str, Any]:
    path = in_path(folder)
    config: dict[str, Any] = {
        "architecture": "jumprelu",
        "apply_b_dec_to_input": False,
        "prepend_bos": True,
        "context_size": 1024,
    }
    layer = re.findall(r"/layer_(\d+)(?=/|$)", path)
    repository = _REPOSITORY.search(path)
    if repository is None:
        return config
    config["model_name"] = f"google/gemma-2-{repository['size']}" + ("-it" if repository["kind"] == "it" else "")
    if "/embedding" in path:
        return config | {"hook_name": "hook_embed"}
    if layer:
        site = repository["site"]
        config["hook_name"] = f"blocks.{layer[-1]}.{_HOOKS[site]}"
        if site == "transcoders":
            config |= {"architecture": "jumprelu_transcoder", "hook_name_out": f"blocks.{layer[-1]}.hook_mlp_out"}
    return config


def _tensors(weights: Path, of_embedding: bool) -> dict[str, Tensor]:
    arrays = read_npz(weights)
    # Some files have names in small letters.
    theirs = {_NAMES.get(name.lower(), name): name for name in arrays}
    tensors = renamed(arrays, {name: theirs.get(name, name) for name in _NAMES.values()}, weights)
    if of_embedding:
        # It was trained on embeddings before Gemma multiplies them by sqrt(d_model).
        scale = len(tensors["b_dec"]) ** 0.5
        tensors |= {"W_enc": tensors["W_enc"] / scale, "W_dec": tensors["W_dec"] * scale}
        tensors["b_dec"] = tensors["b_dec"] * scale
    return tensors


GEMMA_SCOPE = Release(
    "Gemma Scope", f"layer_N/width_W/average_l0_L/{_FILE}", lambda path: (path / _FILE).is_file(), read_gemma_scope
)

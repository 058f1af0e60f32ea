"""Gemma Scope 2: `resid_post/layer_12_width_16k_l0_small/params.safetensors` with `config.json`."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from fsae.export.config_files import read_json
from fsae.export.releases.release import Release, in_path
from fsae.export.stored import Stored
from fsae.export.tensor_files import read_safetensors, renamed

_CONFIG, _FILE = "config.json", "params.safetensors"
_NAMES = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
_SKIP = "affine_skip_connection"

# Hugging Face's module, and TransformerLens' name of the same place.
_HOOKS = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_feedforward_layernorm.output": "hook_mlp_out",
    "pre_feedforward_layernorm.output": "mlp.hook_in",
}
# Parts of a path, if there is no config.json.
_FOLDERS = {"resid_post": "hook_resid_post", "attn_out": "attn.hook_z", "mlp_out": "hook_mlp_out"}


def read_gemma_scope_2(folder: Path) -> Stored:
    """Return the dictionary in a folder of Gemma Scope 2.

    Raises:
        ValueError: config.json is damaged, or names another kind of dictionary.
    """
    weights, path = folder / _FILE, folder / _CONFIG
    known = read_json(path) if path.is_file() else _from_path(folder)
    described = path if path.is_file() else folder
    if known.get("architecture") != "jump_relu":
        raise ValueError(f"{described}: architecture is {known.get('architecture')!r}; Gemma Scope 2 has 'jump_relu'")
    config: dict[str, Any] = {
        "architecture": "jumprelu",
        "apply_b_dec_to_input": False,
        "prepend_bos": True,
        "context_size": 1024,
        "model_name": _model(known.get("model_name")),
        "hook_name": _hook(known.get("hf_hook_point_in"), described),
    }
    hook_out = _hook(known.get("hf_hook_point_out"), described)
    transcoder = hook_out is not None and hook_out != config["hook_name"]
    if transcoder:
        skip = "skip_" if known.get("affine_connection") else ""
        config |= {"architecture": f"jumprelu_{skip}transcoder", "hook_name_out": hook_out}
    return Stored(config, described, weights, lambda: _tensors(weights))


def _from_path(folder: Path) -> dict[str, Any]:
    path = in_path(folder)
    layer, place = (
        re.search(r"/layer_(\d+)", path),
        next((hook for part, hook in _FOLDERS.items() if part in path), None),
    )
    model = re.search(r"gemma-scope-2-([\w-]+)", path)
    known: dict[str, Any] = {"architecture": "jump_relu", "model_name": f"gemma-3-{model[1]}" if model else None}
    if layer and "transcoder" in path:
        known |= {"hf_hook_point_in": f"model.layers.{layer[1]}.pre_feedforward_layernorm.output"}
        known |= {"hf_hook_point_out": f"model.layers.{layer[1]}.post_feedforward_layernorm.output"}
        known |= {"affine_connection": "affine" in path}
    elif layer and place:
        module = next(module for module, hook in _HOOKS.items() if hook == place)
        known |= {"hf_hook_point_in": f"model.layers.{layer[1]}.{module}"}
    return known


def _hook(module: str | None, described: Path) -> str | None:
    if module is None:
        return None
    found = re.fullmatch(r"(?:[\w.]+\.)?layers\.(\d+)\.(.+)", str(module))
    if found is None or found[2] not in _HOOKS:
        raise ValueError(f"{described}: {module!r} is no place that is known; known are {', '.join(_HOOKS)} of a layer")
    return f"blocks.{found[1]}.{_HOOKS[found[2]]}"


def _model(name: object) -> str | None:
    """Return the hub's name of the model: config.json writes gemma-v3-270m-pt for google/gemma-3-270m."""
    if not isinstance(name, str):
        return None
    hub = f"google/{name.removeprefix('google/').replace('-v3', '-3')}"
    return hub.removesuffix("-pt") if "270m" in hub else hub


def _tensors(weights: Path) -> dict[str, Tensor]:
    tensors = read_safetensors(weights)
    if _SKIP in tensors:
        # Stored as (d_in, d_out).
        return renamed(tensors, _NAMES | {"W_skip": _SKIP}, weights, transposed=("W_skip",))
    return renamed(tensors, _NAMES, weights)


GEMMA_SCOPE_2 = Release(
    "Gemma Scope 2", f"{_CONFIG} and {_FILE}", lambda path: (path / _FILE).is_file(), read_gemma_scope_2
)

"""Gemma Scope 2: `resid_post/layer_12_width_16k_l0_small/params.safetensors` with `config.json`.

Cross-layer transcoders (`clt/width_262k_l0_big`) and crosscoders (`crosscoder/layer_5_9_12_15_width_1m_l0_big`) have
`params_layer_0.safetensors` and so on, one for the latents that read a layer. Crosscoders are weakly causal: a latent
reads one of the layers, and writes this and later ones.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fsae.autoencoders.layout import PartNorm
from fsae.export.config_files import read_json
from fsae.export.releases.release import Release, in_path
from fsae.export.stored import Stored
from fsae.export.tensor_files import check_shapes, read_safetensors, renamed, shape_in

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
_LAYERS = re.compile(r"(?:[\w.]+\.)?layers\.\{(?P<layers>all|\d+(?:,\d+)*)\}\.(?P<module>.+)")
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


def read_gemma_scope_2_layers(folder: Path) -> Stored:
    """Return the cross-layer transcoder or the crosscoder in a folder of Gemma Scope 2.

    Raises:
        ValueError: a file is damaged, or config.json names another kind of dictionary.
    """
    path, first = folder / _CONFIG, folder / _layer_file(0)
    known = read_json(path)
    if known.get("architecture") != "jump_relu":
        raise ValueError(f"{path}: architecture is {known.get('architecture')!r}; Gemma Scope 2 has 'jump_relu'")
    count = len(list(folder.glob(_layer_file("*"))))
    read, written = (_hooks(known.get(f"hf_hook_point_{end}"), count, path) for end in ("in", "out"))
    width, d_layer = shape_in(first, "w_enc", 2)
    skip, crosscoder = known.get("affine_connection") is True, read == written
    config: dict[str, Any] = {
        "architecture": f"jumprelu_{'crosscoder' if crosscoder else 'cross_layer_transcoder'}",
        "d_in": count * width,
        "d_out": count * width,
        "d_sae": count * d_layer,
        "parts": [[hook, width] for hook in read],
        "blocks": [
            {"latents": d_layer, "reads": [layer], "writes": list(range(layer, count))} for layer in range(count)
        ],
        "apply_b_dec_to_input": False,
        "prepend_bos": True,
        "context_size": 1024,
        "model_name": _model(known.get("model_name")),
        "hook_name": read[0],
        "hook_names": read,
    }
    if not crosscoder:
        config |= {"target_parts": [[hook, width] for hook in written], "skip": skip}
        config |= {"part_norm": PartNorm.joint.value, "hook_name_out": written[0], "hook_names_out": written}

    shapes = {
        "W_enc": (width, d_layer), "W_dec": (d_layer, count, width), "b_enc": (d_layer,), "b_dec": (width,),
        "threshold": (d_layer,),
    }  # fmt: skip
    names = dict(_NAMES)
    if skip and not crosscoder:
        shapes, names = shapes | {"W_skip": (width, width)}, names | {"W_skip": _SKIP}

    def tensors() -> dict[str, Tensor]:
        of_layers = []
        for layer in range(count):
            file = folder / _layer_file(layer)
            if not file.is_file():
                raise ValueError(f"{folder} has no {file.name}; download it again")
            own = renamed(read_safetensors(file), names, file)
            check_shapes(own, shapes, names, file, first.name)
            of_layers.append({name: tensor.float() for name, tensor in own.items()})
        found = {name: torch.cat([own[name] for own in of_layers]) for name in ("b_enc", "b_dec", "threshold")}
        found["W_enc"] = torch.block_diag(*(own["W_enc"] for own in of_layers))
        # The files have numbers for earlier layers, too, which are no weights: circuit-tracer leaves them out.
        later = (own["W_dec"][:, layer:].flatten(1) for layer, own in enumerate(of_layers))
        found["W_dec"] = torch.cat([pad(rows, (count * width - rows.shape[1], 0)) for rows in later])
        if "W_skip" in shapes:
            # Stored as (d_in, d_out).
            found["W_skip"] = torch.block_diag(*(own["W_skip"].T for own in of_layers))
        return found

    return Stored(config, path, folder, tensors)


def _layer_file(layer: int | str) -> str:
    return f"params_layer_{layer}.safetensors"


def _hooks(modules: object, count: int, described: Path) -> list[str]:
    """Return TransformerLens' names of a place in several layers, such as model.layers.{5,9}.output or .{all}."""
    found = _LAYERS.fullmatch(str(modules))
    if found is None or found["module"] not in _HOOKS:
        raise ValueError(
            f"{described}: {modules!r} is no place in several layers, such as model.layers.{{5,9}}.output; known are "
            f"{', '.join(_HOOKS)}"
        )
    layers = range(count) if found["layers"] == "all" else [int(layer) for layer in found["layers"].split(",")]
    if len(layers) != count:
        raise ValueError(
            f"{described} names {len(layers)} layers, but next to it are files of {count}; download them again"
        )
    return [f"blocks.{layer}.{_HOOKS[found['module']]}" for layer in layers]


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
GEMMA_SCOPE_2_LAYERS = Release(
    "Gemma Scope 2, several layers",
    f"{_CONFIG} and {_layer_file('N')} of all layers",
    lambda path: (path / _layer_file(0)).is_file() and (path / _CONFIG).is_file(),
    read_gemma_scope_2_layers,
)

"""circuit-tracer's folders: transcoders of single layers, and cross-layer transcoders.

The former are `layer_5.safetensors` and so on, the latter `W_enc_0.safetensors` and `W_dec_0.safetensors` and so on. A
`config.yaml` names the language model, and the hooks within a block.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Ends, PartNorm
from fsae.export.between import saelens_form, split_name
from fsae.export.config_files import read_yaml
from fsae.export.releases.release import Release
from fsae.export.stored import Stored
from fsae.export.tensor_files import check_shapes, names_in, plain, read_safetensors, renamed, shape_in

CONFIG = "config.yaml"
# Its `model_kind`.
TRANSCODERS, CROSS_LAYER = "transcoder_set", "cross_layer_transcoder"

_FILE = re.compile(r"layer_(\d+)\.safetensors")
_NAMES = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_THRESHOLD, _SKIP = "activation_function.threshold", "W_skip"


def layer_file(layer: int) -> str:
    """Return the name of the file of a layer's transcoder."""
    return f"layer_{layer}.safetensors"


def encoder_file(layer: int) -> str:
    """Return the name of the file of a layer's encoder in a cross-layer transcoder."""
    return f"W_enc_{layer}.safetensors"


def decoder_file(layer: int) -> str:
    """Return the name of the file of a layer's decoders in a cross-layer transcoder."""
    return f"W_dec_{layer}.safetensors"


def crosses_layers(ends: Ends) -> bool:
    """Return whether these are the ends of a cross-layer transcoder."""
    return not ends.same and any(len(block.writes) > 1 for block in ends.blocks)


def files_of(autoencoder: Autoencoder, layers: list[int], source: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of the files of a dictionary, in float32, by the files' names.

    Args:
        autoencoder: a transcoder of one layer or of several, or a cross-layer transcoder, for raw activations.
        layers: those that it reads and writes.
        source: where it is from, for messages.

    Raises:
        ValueError: its codes are those of no ReLU and of no thresholds, or it is of another kind.
    """
    ends = autoencoder.ends
    form = saelens_form(autoencoder)
    of_codes = split_name({"architecture": form.architecture})[0]["architecture"]
    if ends.same or of_codes not in ("standard", "jumprelu"):
        raise ValueError(
            f"{source} has a {form.architecture}, and circuit-tracer takes transcoders whose codes are those of ReLU "
            "or of thresholds; train with arch=batch_topk, which is stored with its threshold, arch=jumprelu or "
            "arch=standard"
        )
    if crosses_layers(ends) and ends.skip:
        raise ValueError(
            f"{source} has a linear path, and circuit-tracer's files of cross-layer transcoders have no place for it; "
            "train with layout.skip=false"
        )
    tensors = plain(form.tensors)
    parts = _of_layers(tensors, autoencoder)
    if not crosses_layers(ends):
        names = _NAMES | {"threshold": _THRESHOLD, "W_skip": _SKIP}
        return {
            layer_file(layer): {names[name]: tensor for name, tensor in own.items()}
            for layer, own in zip(layers, parts, strict=True)
        }
    files: dict[str, dict[str, Tensor]] = {}
    for layer, own in zip(layers, parts, strict=True):
        # (latents, layers that are written, d)
        rows = own.pop("W_dec").unflatten(1, (len(layers) - len(files) // 2, -1))
        files[decoder_file(layer)] = {f"W_dec_{layer}": rows}
        files[encoder_file(layer)] = {f"{name}_{layer}": tensor for name, tensor in own.items()}
    return files


def _of_layers(tensors: Mapping[str, Tensor], autoencoder: Autoencoder) -> list[dict[str, Tensor]]:
    """Return the tensors of the latents of each layer, with W_enc transposed."""
    ends = autoencoder.ends
    found = []
    for part, (read, out) in enumerate(zip(ends.input.slices, ends.target.slices, strict=True)):
        latents, written = ends.written(autoencoder.d_sae)[part] if ends.blocks else (slice(None), out)
        own = {
            "W_enc": tensors["W_enc"][read, latents].T,
            "W_dec": tensors["W_dec"][latents, written],
            "b_enc": tensors["b_enc"][latents],
            "b_dec": tensors["b_dec"][out],
        }
        if "threshold" in tensors:
            own["threshold"] = tensors["threshold"][latents]
        if "W_skip" in tensors:
            own["W_skip"] = tensors["W_skip"][out, read]
        found.append(plain(own))
    return found


def read_circuit_tracer(file: Path) -> Stored:
    """Return the transcoder of one layer.

    Raises:
        ValueError: a file is damaged, or config.yaml is of another kind of dictionary.
    """
    found = _FILE.fullmatch(file.name)
    assert found is not None
    path, known = _config_of(file.parent, TRANSCODERS)
    names = names_in(file)
    jump, skip = ("jumprelu_" if _THRESHOLD in names else ""), ("skip_" if _SKIP in names else "")
    config: dict[str, Any] = {
        "architecture": f"{jump}{skip}transcoder",
        "apply_b_dec_to_input": False,
        "model_name": known.get("model_name"),
        **_hooks(known, [int(found[1])]),
    }

    def tensors() -> dict[str, Tensor]:
        more = {"threshold": _THRESHOLD} if jump else {}
        more |= {"W_skip": _SKIP} if skip else {}
        return renamed(read_safetensors(file), _NAMES | more, file, transposed=("W_enc",))

    return Stored(config, path if path.is_file() else file, file, tensors)


def read_cross_layer(folder: Path) -> Stored:
    """Return the cross-layer transcoder in a folder.

    Raises:
        ValueError: a file is missing or damaged, or config.yaml is of another kind of dictionary.
    """
    path, known = _config_of(folder, CROSS_LAYER)
    layers = len(list(folder.glob("W_enc_*.safetensors")))
    first = folder / encoder_file(0)
    jump = "threshold_0" in names_in(first)
    d_layer, width = shape_in(first, "W_enc_0", 2)
    config: dict[str, Any] = {
        "architecture": f"{'jumprelu' if jump else 'standard'}_cross_layer_transcoder",
        "d_in": layers * width,
        "d_out": layers * width,
        "d_sae": layers * d_layer,
        "parts": [[f"input {layer}", width] for layer in range(layers)],
        "target_parts": [[f"target {layer}", width] for layer in range(layers)],
        "part_norm": PartNorm.joint.value,
        "blocks": [
            {"latents": d_layer, "reads": [layer], "writes": list(range(layer, layers))} for layer in range(layers)
        ],
        "model_name": known.get("model_name"),
        **_hooks(known, list(range(layers))),
    }

    def tensors() -> dict[str, Tensor]:
        W_enc = torch.zeros(layers * width, layers * d_layer)
        W_dec = torch.zeros(layers * d_layer, layers * width)
        of_layers: dict[str, list[Tensor]] = {}
        for layer in range(layers):
            latents = slice(layer * d_layer, (layer + 1) * d_layer)
            file, rows = folder / encoder_file(layer), folder / decoder_file(layer)
            shapes = {"W_enc": (d_layer, width), "b_enc": (d_layer,), "b_dec": (width,)}
            shapes |= {"threshold": (d_layer,)} if jump else {}
            own = _shaped(file, shapes, layer)
            W_enc[layer * width : (layer + 1) * width, latents] = own.pop("W_enc").T
            written = _shaped(rows, {"W_dec": (d_layer, layers - layer, width)}, layer)["W_dec"]
            W_dec[latents, layer * width :] = written.flatten(1)
            for name, tensor in own.items():
                of_layers.setdefault(name, []).append(tensor)
        joined = {name: torch.cat(each) for name, each in of_layers.items()}
        return {"W_enc": W_enc, "W_dec": W_dec, **joined}

    return Stored(config, path if path.is_file() else folder, folder, tensors)


def _shaped(file: Path, shapes: Mapping[str, tuple[int, ...]], layer: int) -> dict[str, Tensor]:
    """Return the tensors of a file of a layer, by their names without the layer."""
    if not file.is_file():
        raise ValueError(f"{file.parent} has no {file.name}; download it again")
    names = {name: f"{name}_{layer}" for name in shapes}
    found = renamed(read_safetensors(file), names, file)
    check_shapes(found, shapes, names, file, encoder_file(0))
    return found


def _config_of(folder: Path, wanted: str) -> tuple[Path, dict[str, Any]]:
    path = folder / CONFIG
    known = read_yaml(path) if path.is_file() else {}
    kind = known.get("model_kind", wanted)
    if kind != wanted:
        raise ValueError(f"{path}: model_kind is {kind!r}, but the files next to it are those of {wanted!r}")
    return path, known


def _hooks(known: Mapping[str, Any], layers: list[int]) -> dict[str, Any]:
    """Return SAELens' words for the hooks of all layers."""
    found: dict[str, Any] = {}
    for key, hook, hooks in (
        ("feature_input_hook", "hook_name", "hook_names"),
        ("feature_output_hook", "hook_name_out", "hook_names_out"),
    ):
        if key in known:
            names = [f"blocks.{layer}.{known[key]}" for layer in layers]
            found |= {hook: names[0]} | ({hooks: names} if len(names) > 1 else {})
    return found


CIRCUIT_TRACER = Release(
    "circuit-tracer",
    "one file layer_N.safetensors",
    lambda path: path.is_file() and _FILE.fullmatch(path.name) is not None,
    read_circuit_tracer,
)
CROSS_LAYER_TRANSCODER = Release(
    "circuit-tracer, cross-layer",
    "W_enc_N.safetensors and W_dec_N.safetensors of all layers",
    lambda path: (path / encoder_file(0)).is_file(),
    read_cross_layer,
)

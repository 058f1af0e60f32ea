"""circuit-tracer's folders of per-layer transcoders: `layer_5.safetensors` with `config.yaml` for all layers."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.export.between import between, split_name
from fsae.export.config_files import read_yaml
from fsae.export.releases.release import Release
from fsae.export.stored import Stored
from fsae.export.tensor_files import names_in, plain, read_safetensors, renamed

CONFIG = "config.yaml"
# Its `model_kind`.
TRANSCODERS = "transcoder_set"
_FILE = re.compile(r"layer_(\d+)\.safetensors")
_NAMES = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_THRESHOLD, _SKIP = "activation_function.threshold", "W_skip"


def read_circuit_tracer(file: Path) -> Stored:
    """Return the transcoder of one layer.

    Raises:
        ValueError: a file is damaged, or config.yaml is of another kind of dictionary.
    """
    layer = _FILE.fullmatch(file.name)
    assert layer is not None
    path = file.parent / CONFIG
    known = read_yaml(path) if path.is_file() else {}
    kind = known.get("model_kind", TRANSCODERS)
    if kind != TRANSCODERS:
        raise ValueError(f"{path}: model_kind is {kind!r}, which is not supported; only {TRANSCODERS!r} is")
    names = names_in(file)
    jump, skip = ("jumprelu_" if _THRESHOLD in names else ""), ("skip_" if _SKIP in names else "")
    config: dict[str, Any] = {
        "architecture": f"{jump}{skip}transcoder",
        "apply_b_dec_to_input": False,
        "model_name": known.get("model_name"),
    }
    for name, key in (("hook_name", "feature_input_hook"), ("hook_name_out", "feature_output_hook")):
        if key in known:
            config[name] = f"blocks.{layer[1]}.{known[key]}"

    def tensors() -> dict[str, Tensor]:
        more = {"threshold": _THRESHOLD} if jump else {}
        more |= {"W_skip": _SKIP} if skip else {}
        return renamed(read_safetensors(file), _NAMES | more, file, transposed=("W_enc",))

    return Stored(config, path if path.is_file() else file, file, tensors)


def layer_file(layer: int) -> str:
    """Return the name of the file of a layer."""
    return f"layer_{layer}.safetensors"


def transcoder_tensors(autoencoder: Autoencoder, source: Path) -> dict[str, Tensor]:
    """Return the tensors of a transcoder's file, in float32.

    Args:
        autoencoder: a transcoder for raw activations.
        source: where it is from, for messages.

    Raises:
        ValueError: its codes are those of no ReLU and of no thresholds.
    """
    form = between(autoencoder.to_saelens(), autoencoder)
    config, kind = split_name({"architecture": form.architecture})
    if kind is None or not kind.two_sites or config["architecture"] not in ("standard", "jumprelu"):
        raise ValueError(
            f"{source} has a {form.architecture}, and circuit-tracer takes transcoders whose codes are those of ReLU "
            "or of thresholds; train with arch=batch_topk, which is stored with its threshold, arch=jumprelu or "
            "arch=standard"
        )
    names = {**_NAMES, "threshold": _THRESHOLD, "W_skip": _SKIP}
    return plain({names[name]: tensor.T if name == "W_enc" else tensor for name, tensor in form.tensors.items()})


CIRCUIT_TRACER = Release(
    "circuit-tracer",
    "one file layer_N.safetensors",
    lambda path: path.is_file() and _FILE.fullmatch(path.name) is not None,
    read_circuit_tracer,
)

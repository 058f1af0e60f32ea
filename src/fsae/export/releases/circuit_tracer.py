"""circuit-tracer's folders of per-layer transcoders: `layer_5.safetensors` with `config.yaml` for all layers."""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fsae.export.config_files import read_yaml
from fsae.export.releases.release import Release
from fsae.export.stored import Stored
from fsae.export.tensor_files import read_safetensors, renamed

_CONFIG = "config.yaml"
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
    path = file.parent / _CONFIG
    known = read_yaml(path) if path.is_file() else {}
    kind = known.get("model_kind", "transcoder_set")
    if kind != "transcoder_set":
        raise ValueError(f"{path}: model_kind is {kind!r}, which is not supported; only 'transcoder_set' is")
    names = _names_of(file)
    jump, skip = ("jumprelu_" if _THRESHOLD in names else ""), ("skip_" if _SKIP in names else "")
    config: dict[str, Any] = {
        "architecture": f"{jump}{skip}transcoder",
        "apply_b_dec_to_input": False,
        "model_name": known.get("model_name"),
        "hook_name": f"blocks.{layer[1]}.{known.get('feature_input_hook', 'hook_mlp_in')}",
        "hook_name_out": f"blocks.{layer[1]}.{known.get('feature_output_hook', 'hook_mlp_out')}",
    }

    def tensors() -> dict[str, Tensor]:
        more = {"threshold": _THRESHOLD} if jump else {}
        more |= {"W_skip": _SKIP} if skip else {}
        return renamed(read_safetensors(file), _NAMES | more, file, transposed=("W_enc",))

    return Stored(config, path if path.is_file() else file, file, tensors)


def _names_of(file: Path) -> set[str]:
    """Return the names of the tensors, without reading them."""
    try:
        with safe_open(file, "pt") as tensors:
            return set(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is truncated or damaged ({error}); save or download it again") from error


CIRCUIT_TRACER = Release(
    "circuit-tracer",
    "one file layer_N.safetensors",
    lambda path: path.is_file() and _FILE.fullmatch(path.name) is not None,
    read_circuit_tracer,
)

"""dictionary_learning (Marks et al.): `ae.pt` with `config.json`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsae.export.config_files import read_json
from fsae.export.releases.release import Release
from fsae.export.stored import Stored, fold_decoder_norms
from fsae.export.tensor_files import read_state_dict, renamed

_CONFIG, _FILE = "config.json", "ae.pt"

_LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
_PLAIN = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_BUFFERS = ("k", "threshold", "group_sizes")

# Their classes, our architecture, the names of the tensors, and whether b_dec is subtracted from the input.
_CLASSES: dict[str, tuple[str, dict[str, str], bool]] = {
    "AutoEncoder": ("standard", _LINEAR | {"b_enc": "encoder.bias", "b_dec": "bias"}, True),
    "AutoEncoderNew": ("standard", _LINEAR | {"b_enc": "encoder.bias", "b_dec": "decoder.bias"}, False),
    "GatedAutoEncoder": (
        "gated",
        _LINEAR | {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag", "b_dec": "decoder_bias"},
        True,
    ),
    "AutoEncoderTopK": ("topk", _LINEAR | {"b_enc": "encoder.bias", "b_dec": "b_dec"}, True),
    "BatchTopKSAE": ("jumprelu", _LINEAR | {"b_enc": "encoder.bias", "b_dec": "b_dec", "threshold": "threshold"}, True),
    "MatryoshkaBatchTopKSAE": ("jumprelu", _PLAIN | {"threshold": "threshold"}, True),
    "JumpReluAutoEncoder": ("jumprelu", _PLAIN | {"threshold": "threshold"}, False),
}
# Classes whose codes are multiplied by the norms of the decoder's rows.
_BY_NORM = {"GatedAutoEncoder": ("b_gate", "b_mag"), "JumpReluAutoEncoder": ("b_enc", "threshold")}


def read_dictionary_learning(folder: Path) -> Stored:
    """Return the dictionary in a folder of dictionary_learning.

    Raises:
        ValueError: config.json is damaged, or names another kind of dictionary.
    """
    path, weights = folder / _CONFIG, folder / _FILE
    known = read_json(path)
    trainer, buffer = known.get("trainer"), known.get("buffer")
    if not isinstance(trainer, dict):
        raise ValueError(f"{path} has no trainer, so it is no dictionary of dictionary_learning")
    name = str(trainer.get("dict_class"))
    if name not in _CLASSES:
        raise ValueError(f"{path}: dict_class is {name!r}, which is not supported; known are {', '.join(_CLASSES)}")
    architecture, names, centred = _CLASSES[name]
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": trainer.get("activation_dim"),
        "d_sae": trainer.get("dict_size"),
        "apply_b_dec_to_input": centred,
        "model_name": trainer.get("lm_name"),
        "context_size": buffer.get("ctx_len") if isinstance(buffer, dict) else None,
    }
    if architecture == "topk":
        config["k"] = trainer.get("k")
    if isinstance(layer := trainer.get("layer"), int):
        config["hook_name"] = f"blocks.{layer}.{_hook(str(trainer.get('submodule_name')))}"

    def tensors() -> dict[str, Tensor]:
        transposed = ("W_enc", "W_dec") if names["W_enc"] == "encoder.weight" else ()
        found = renamed(read_state_dict(weights), names, weights, transposed, ignored=_BUFFERS)
        if "threshold" in found:
            # It is -1 before the first estimate, and codes of ReLU are all above that.
            found["threshold"] = found["threshold"].clamp_min(0).expand(len(found["b_enc"]))
        if name in _BY_NORM:
            for each, tensor in found.items():
                found[each] = tensor.to(torch.float32)
            fold_decoder_norms(found, _BY_NORM[name])
        return found

    return Stored(config, path, weights, tensors)


def _hook(submodule: str) -> str:
    """Return TransformerLens' name of a submodule's output, such as resid_post_layer_8."""
    if "mlp" in submodule:
        return "hook_mlp_out"
    return "hook_attn_out" if "att" in submodule else "hook_resid_post"


DICTIONARY_LEARNING = Release(
    "dictionary_learning",
    f"{_CONFIG} and {_FILE}",
    lambda path: (path / _FILE).is_file() and (path / _CONFIG).is_file(),
    read_dictionary_learning,
)

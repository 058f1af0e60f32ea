"""EleutherAI's sparsify: `layers.5.mlp/sae.safetensors` with `cfg.json`."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from fsae.export.config_files import read_json
from fsae.export.releases.release import Release
from fsae.export.stored import Stored
from fsae.export.tensor_files import read_safetensors, renamed

_CONFIG, _FILE = "cfg.json", "sae.safetensors"
# W_dec lies in rows, although the encoder is stored as a linear layer.
_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}

_ACTIVATIONS = ("topk", "groupmax")
# The end of a hookpoint's name, and TransformerLens' name of the place.
_HOOKS = {
    "": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "attn": "hook_attn_out",
    "self_attn": "hook_attn_out",
    "attention": "hook_attn_out",
}


def read_sparsify(folder: Path) -> Stored:
    """Return the dictionary in a folder of sparsify; the folder's name is the place in the language model.

    Raises:
        ValueError: cfg.json is damaged, or names another kind of dictionary.
    """
    path, weights = folder / _CONFIG, folder / _FILE
    known = read_json(path)
    activation = known.get("activation", "topk")
    if activation not in _ACTIVATIONS or known.get("signed"):
        asked = "signed" if known.get("signed") else f"activation {activation!r}"
        raise ValueError(f"{path} asks for {asked}, which is not supported; known are {', '.join(_ACTIVATIONS)}")
    skip = bool(known.get("skip_connection"))
    # Its first skip transcoders do not say that they are any, and it reads them as autoencoders of their inputs.
    transcoder, centred = bool(known.get("transcode", skip)), not known.get("transcode")
    config: dict[str, Any] = {
        "architecture": activation,
        "d_in": known.get("d_in"),
        "k": known.get("k"),
        "apply_b_dec_to_input": centred,
    }
    hook = _hook(folder.name)
    if hook is not None:
        config["hook_name"] = hook
    if transcoder or skip:
        config["architecture"] = f"{activation}_{'skip_' if skip else ''}transcoder"
    if transcoder and hook is not None and hook.endswith("hook_mlp_out"):
        config |= {"hook_name": hook.replace("hook_mlp_out", "mlp.hook_in"), "hook_name_out": hook}
    run = folder.parent / "config.json"
    if run.is_file():
        training = read_json(run)
        said = {"model_name": training.get("model"), "dataset_path": training.get("dataset")}
        config |= said | {"context_size": training.get("ctx_len")}

    def tensors() -> dict[str, Tensor]:
        names = _NAMES | ({"W_skip": "W_skip"} if skip else {})
        found = renamed(read_safetensors(weights), names, weights, transposed=("W_enc",))
        if skip and centred:
            # A dictionary with a linear path subtracts no b_dec here.
            found = {name: tensor.float() for name, tensor in found.items()}
            found["b_enc"] = found["b_enc"] - found["b_dec"] @ found["W_enc"]
        return found

    return Stored(config, path, weights, tensors)


def _hook(name: str) -> str | None:
    """Return TransformerLens' name of a hookpoint, such as layers.5, transformer.h.5.mlp or gpt_neox.layers.5."""
    found = re.fullmatch(r"(?:[\w.]+\.)?(?:layers|h|blocks)[._](\d+)(?:[._](\w+))?", name)
    if found is None or (found[2] or "") not in _HOOKS:
        return None
    return f"blocks.{found[1]}.{_HOOKS[found[2] or '']}"


SPARSIFY = Release(
    "sparsify",
    f"{_CONFIG} and {_FILE}",
    lambda path: (path / _FILE).is_file() and (path / _CONFIG).is_file(),
    read_sparsify,
)

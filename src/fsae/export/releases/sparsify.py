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
# By the end of a module's name: TransformerLens' names of what the module reads and writes.
_ATTENTION = ("attn.hook_in", "hook_attn_out")
_HOOKS = {
    "": ("hook_resid_pre", "hook_resid_post"),
    "mlp": ("mlp.hook_in", "hook_mlp_out"),
    "attn": _ATTENTION,
    "self_attn": _ATTENTION,
    "attention": _ATTENTION,
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
    if transcoder or skip:
        config["architecture"] = f"{activation}_{'skip_' if skip else ''}transcoder"
    hooks = _hooks(folder.name)
    if hooks is not None:
        read, written = hooks
        config |= {"hook_name": read, "hook_name_out": written} if transcoder else {"hook_name": written}
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


def _hooks(name: str) -> tuple[str, str] | None:
    """Return TransformerLens' names of what a hookpoint's module reads and writes; a hookpoint is layers.5,
    transformer.h.5.mlp or gpt_neox.layers.5, for instance."""
    found = re.fullmatch(r"(?:[\w.]+\.)?(?:layers|h|blocks)[._](\d+)(?:[._](\w+))?", name)
    ends = None if found is None else _HOOKS.get(found[2] or "")
    if found is None or ends is None:
        return None
    read, written = (f"blocks.{found[1]}.{end}" for end in ends)
    return read, written


SPARSIFY = Release(
    "sparsify",
    f"{_CONFIG} and {_FILE}",
    lambda path: (path / _FILE).is_file() and (path / _CONFIG).is_file(),
    read_sparsify,
)

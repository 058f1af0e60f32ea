"""Single files of `torch.save`: OpenAI's dictionaries of GPT-2 (Gao et al. 2024), Qwen Scope, Goodfire, DeepSeek-R1.

Such a file holds no settings, and its name and folders hold some of them.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from fsae.export.releases.release import Release, in_path
from fsae.export.stored import Stored
from fsae.export.tensor_files import read_state_dict, renamed

_ENDINGS = (".pt", ".pth")

_OPENAI = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": "latent_bias", "b_dec": "pre_bias"}
_OPENAI_STATISTICS = (
    "activation", "activation_state_dict", "stats_last_nonzero", "latents_activation_frequency", "latents_mean_square",
)  # fmt: skip
# The places in a block of GPT-2, and TransformerLens' names of them.
_OPENAI_HOOKS = {
    "resid_post_attn": "hook_resid_mid",
    "resid_post_mlp": "hook_resid_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_delta_mlp": "hook_mlp_out",
}
_QWEN = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_GOODFIRE = {
    "W_enc": "encoder_linear.weight", "b_enc": "encoder_linear.bias",
    "W_dec": "decoder_linear.weight", "b_dec": "decoder_linear.bias",
}  # fmt: skip
_DEEPSEEK = {
    "W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias",
}  # fmt: skip
_TRANSPOSED = ("W_enc", "W_dec")


def read_openai(file: Path) -> Stored:
    """Return the dictionary in a file of OpenAI, such as `resid_post_mlp_v5_32k/autoencoders/5.pt`."""
    state = read_state_dict(file)
    config: dict[str, Any] = {"architecture": "standard", "apply_b_dec_to_input": True, "model_name": "gpt2"}
    place = next((hook for name, hook in _OPENAI_HOOKS.items() if name in in_path(file)), None)
    if place is not None and file.stem.isdecimal():
        config["hook_name"] = f"blocks.{file.stem}.{place}"
    activation = state.get("activation", "ReLU")
    if activation == "TopK":
        of_function = state.get("activation_state_dict") or {}
        # OpenAI's code normalises the samples of every TopK dictionary, and of no other.
        config |= {"architecture": "topk", "k": of_function.get("k"), "normalize_activations": "layer_norm"}
        if of_function.get("postact_fn", "ReLU") != "ReLU":
            raise ValueError(f"{file}: postact_fn is {of_function['postact_fn']!r}, which is not supported; 'ReLU' is")
    elif activation != "ReLU":
        raise ValueError(f"{file}: activation is {activation!r}, which is not supported; known are ReLU, TopK")
    return Stored(config, file, file, lambda: renamed(state, _OPENAI, file, _TRANSPOSED, _OPENAI_STATISTICS))


def read_qwen_scope(file: Path) -> Stored:
    """Return the dictionary in a file of Qwen Scope, such as `SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer3.sae.pt`.

    Raises:
        ValueError: the repository's name, which has the number of active latents, is not in the path.
    """
    repository = re.search(r"SAE-Res-(?P<model>[^/]+)-W\d+K-L0_(?P<k>\d+)", in_path(file))
    layer = re.search(r"layer(\d+)\.sae\.pt$", file.name)
    if repository is None or layer is None:
        raise ValueError(
            f"{file}: Qwen Scope has the number of active latents in the repository's name alone, and this path has no "
            "such name; put the file into a folder like SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
        )
    config = {
        "architecture": "topk",
        "k": int(repository["k"]),
        "apply_b_dec_to_input": False,
        "model_name": f"Qwen/{repository['model']}",
        "hook_name": f"blocks.{layer[1]}.hook_resid_post",
        "prepend_bos": True,
        "context_size": 1024,
    }
    return Stored(config, file, file, lambda: renamed(read_state_dict(file), _QWEN, file, _TRANSPOSED))


def read_linear_layers(file: Path) -> Stored:
    """Return the ReLU dictionary in a file of Goodfire, or of qresearch's DeepSeek-R1."""
    names = _GOODFIRE if "encoder_linear.weight" in read_state_dict(file) else _DEEPSEEK
    config: dict[str, Any] = {"architecture": "standard", "apply_b_dec_to_input": False, "prepend_bos": True}
    # Llama-3.3-70B-Instruct-SAE-l50.pt
    found = re.fullmatch(r"(?P<model>.+)-SAE-l(?P<layer>\d+)", file.stem)
    if found is not None:
        owner = "deepseek-ai" if found["model"].startswith("DeepSeek") else "meta-llama"
        config |= {"model_name": f"{owner}/{found['model']}", "hook_name": f"blocks.{found['layer']}.hook_resid_post"}
    return Stored(config, file, file, lambda: renamed(read_state_dict(file), names, file, _TRANSPOSED))


def _read(file: Path) -> Stored:
    """Return the dictionary in a file whose names of tensors decide whose it is."""
    if file.name.endswith(".sae.pt"):
        return read_qwen_scope(file)
    found = read_state_dict(file)
    readers: list[tuple[str, Callable[[Path], Stored]]] = [
        ("latent_bias", read_openai),
        ("encoder_linear.weight", read_linear_layers),
        ("encoder.weight", read_linear_layers),
    ]
    for name, reader in readers:
        if isinstance(found.get(name), Tensor):
            return reader(file)
    raise ValueError(
        f"{file} holds {', '.join(sorted(map(str, found))[:8]) or 'nothing'}, so no known project has made it: "
        "OpenAI's dictionaries have latent_bias, Goodfire's encoder_linear.weight, DeepSeek-R1's encoder.weight"
    )


STATE_DICT_FILE = Release(
    "OpenAI, Qwen Scope, Goodfire, DeepSeek-R1",
    "one file .pt or .pth",
    # These mean nothing without the settings next to them.
    lambda path: path.is_file() and path.suffix in _ENDINGS and path.name not in ("ae.pt", "cc_weights.pt"),
    _read,
)

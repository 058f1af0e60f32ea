"""OpenMOSS' dictionaries: Llama Scope (He et al. 2024, arXiv 2410.20526), and those of Language-Model-SAEs since.

Llama Scope is `hyperparams.json` and `checkpoints/final.safetensors`, the later ones `config.json` and
`sae_weights.safetensors`. Both are trained on activations that are multiplied by sqrt(d_model) over the mean norm of
the data set, and compare pre-activations with a threshold after multiplying them by the norms of the decoder's rows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsae.export.config_files import read_json
from fsae.export.releases.release import Release, in_path
from fsae.export.stored import Stored
from fsae.export.tensor_files import read_safetensors, renamed

_LLAMA_CONFIG, _LLAMA_FILE = "hyperparams.json", "checkpoints/final.safetensors"
_CONFIG, _FILE = "config.json", "sae_weights.safetensors"

_LINEAR = {
    "W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias",
}  # fmt: skip
_PLAIN = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
_LOG_THRESHOLD = "log_jumprelu_threshold"
_MEAN_NORM = "dataset_average_activation_norm"

_ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}
# The normalisation by one factor.
_DATASET = "dataset-wise"


def read_llama_scope(folder: Path) -> Stored:
    """Return the dictionary in a folder of Llama Scope.

    Raises:
        ValueError: hyperparams.json is damaged, or names another kind of dictionary.
    """
    path, weights = folder / _LLAMA_CONFIG, folder / _LLAMA_FILE
    settings = _Settings(read_json(path), path)
    config = settings.config()
    if "Llama3_1-8B-Base" in in_path(folder):
        config["model_name"] = "meta-llama/Llama-3.1-8B"

    def tensors() -> dict[str, Tensor]:
        found = renamed(read_safetensors(weights), _LINEAR, weights, transposed=("W_enc", "W_dec"))
        norms = settings.known.get(_MEAN_NORM)
        scales = settings.scales(norms if isinstance(norms, dict) else {}, ("in", "out"))
        if config["architecture"] == "jumprelu":
            # One number, in the unit of raw activations.
            threshold = settings.number("jump_relu_threshold") * scales[0]
            found["threshold"] = torch.full_like(found["b_enc"], threshold, dtype=torch.float32)
        return settings.folded(found, *scales)

    return Stored(config, path, weights, tensors)


def read_openmoss(folder: Path) -> Stored:
    """Return the dictionary in a folder of Language-Model-SAEs (llamascopium).

    Raises:
        ValueError: config.json is damaged, or names another kind of dictionary.
    """
    path, weights = folder / _CONFIG, folder / _FILE
    settings = _Settings(read_json(path), path)
    config, known = settings.config(), settings.known

    def tensors() -> dict[str, Tensor]:
        found = read_safetensors(weights)
        stored = [name for name in found if name.startswith(f"{_MEAN_NORM}.")]
        norms = {name.removeprefix(f"{_MEAN_NORM}."): found.pop(name).item() for name in stored}
        names, transposed = (_PLAIN, ()) if "W_E" in found else (_LINEAR, ("W_enc", "W_dec"))
        if known.get("use_decoder_bias") is False:
            found[names["b_dec"]] = torch.zeros(settings.count("d_model"))
        if config["architecture"] == "jumprelu":
            theirs = f"activation_function.{_LOG_THRESHOLD}"
            names = names | {"threshold": theirs if theirs in found else _LOG_THRESHOLD}
        read = renamed(found, names, weights, transposed)
        if "threshold" in read:
            read["threshold"] = read["threshold"].float().exp()
        of_config = known.get(_MEAN_NORM)
        norms |= of_config if isinstance(of_config, dict) else {}
        return settings.folded(read, *settings.scales(norms, (known.get("hook_point_in"), known.get("hook_point_out"))))

    return Stored(config, path, weights, tensors)


@dataclass(frozen=True)
class _Settings:
    """The settings of a dictionary of OpenMOSS.

    Attributes:
        known: by their names.
        path: the file, for messages.
    """

    known: Mapping[str, Any]
    path: Path

    def config(self) -> dict[str, Any]:
        """Return SAELens' words for the settings.

        Raises:
            ValueError: they ask for something that is not supported.
        """
        known = self.known
        supported = {
            "sae_type": ("sae",),
            "act_fn": tuple(_ARCHITECTURES),
            "norm_activation": (_DATASET, "inference", "token-wise", "none"),
            "use_glu_encoder": (False,),
        }
        for key, values in supported.items():
            if known.get(key, values[0]) not in values:
                raise ValueError(
                    f"{self.path}: {key} is {known[key]!r}, which is not supported; known are "
                    f"{', '.join(map(str, values))}"
                )
        hook_in, hook_out = known.get("hook_point_in"), known.get("hook_point_out")
        config: dict[str, Any] = {
            "architecture": _ARCHITECTURES[known.get("act_fn", "relu")],
            "d_in": self.count("d_model"),
            "apply_b_dec_to_input": known.get("apply_decoder_bias_to_pre_encoder", False),
            "model_name": known.get("model_name"),
            "hook_name": hook_in,
            "prepend_bos": True,
            "context_size": 1024,
        }
        if known.get("norm_activation") == "token-wise":
            config["normalize_activations"] = "constant_norm_rescale"
        if config["architecture"] == "topk":
            config |= {"k": self.count("top_k"), "rescale_acts_by_decoder_norm": self._by_norm}
        if hook_out not in (None, hook_in):
            config["hook_name_out"] = hook_out
        return config

    @property
    def _by_norm(self) -> bool:
        """True if pre-activations are multiplied by the norms of the decoder's rows before they are selected."""
        return bool(self.known.get("sparsity_include_decoder_norm", False))

    def scales(self, norms: Mapping[str, Any], ends: tuple[Any, Any]) -> tuple[float, float]:
        """Return the factors of inputs and targets, which give activations of the mean norm the norm sqrt(d_model).

        Args:
            norms: mean norms of the data set.
            ends: the names of the inputs' and the targets' norm.

        Raises:
            ValueError: a norm is missing or impossible.
        """
        if self.known.get("norm_activation", _DATASET) != _DATASET:
            return 1.0, 1.0
        for end in ends:
            norm = norms.get(end)
            if isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 < norm < math.inf:
                raise ValueError(f"{self.path}: {_MEAN_NORM} of {end} is {norm!r}; it must be a positive number")
        scale_in, scale_out = (self.count("d_model") ** 0.5 / norms[end] for end in ends)
        return scale_in, scale_out

    def folded(self, tensors: dict[str, Tensor], scale_in: float, scale_out: float) -> dict[str, Tensor]:
        """Return the tensors for raw activations, and thresholds for plain pre-activations."""
        if "threshold" in tensors and self._by_norm:
            norms = tensors["W_dec"].float().norm(dim=1)
            tensors["threshold"] = tensors["threshold"] / torch.where(norms > 0, norms, 1.0)
        if scale_in == scale_out == 1:
            return tensors
        return tensors | {
            "W_enc": tensors["W_enc"].float() * scale_in,
            "W_dec": tensors["W_dec"].float() / scale_out,
            "b_dec": tensors["b_dec"].float() / scale_out,
        }

    def number(self, key: str) -> float:
        value = self.known.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{self.path}: {key} is {value!r}; it must be a number, 0 or greater")
        return float(value)

    def count(self, key: str) -> int:
        value = self.known.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{self.path}: {key} is {value!r}; it must be a positive whole number")
        return value


LLAMA_SCOPE = Release(
    "Llama Scope",
    f"{_LLAMA_CONFIG} and {_LLAMA_FILE}",
    lambda path: (path / _LLAMA_CONFIG).is_file() and (path / _LLAMA_FILE).is_file(),
    read_llama_scope,
)
OPENMOSS = Release(
    "OpenMOSS",
    f"{_CONFIG} and {_FILE}",
    lambda path: (path / _CONFIG).is_file() and (path / _FILE).is_file(),
    read_openmoss,
)

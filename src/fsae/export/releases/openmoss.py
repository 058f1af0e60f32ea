"""OpenMOSS' dictionaries: Llama Scope (He et al. 2024, arXiv 2410.20526), and those of Language-Model-SAEs since.

Llama Scope is `hyperparams.json` and `checkpoints/final.safetensors`, the later ones `config.json` and
`sae_weights.safetensors`. Both are trained on activations that are multiplied by sqrt(d_model) over the mean norm of
the data set, and compare pre-activations with a threshold after multiplying them by the norms of the decoder's rows.

A crosscoder has one pre-activation per latent, and a gate per latent and site: at a site whose part of the decoder's
row has the norm n, the code is act(pre n) / n. A latent of a cross-layer transcoder has one gate, by the norm of its
whole row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.layout import PartNorm
from fsae.autoencoders.selection import CompetitionScope
from fsae.export.config_files import read_json
from fsae.export.releases.release import Release, in_path
from fsae.export.stored import Stored
from fsae.export.tensor_files import check_shapes, read_safetensors, renamed

_LLAMA_CONFIG, _LLAMA_FILE = "hyperparams.json", "checkpoints/final.safetensors"
_CONFIG, _FILE = "config.json", "sae_weights.safetensors"

_LINEAR = {
    "W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias",
}  # fmt: skip
_PLAIN = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
_LOG_THRESHOLD = "log_jumprelu_threshold"
_MEAN_NORM = "dataset_average_activation_norm"

# `topk` selects from the latents of each layer or site, `layertopk` from those of all layers together.
_ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "layertopk": "topk"}
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
        if settings.known.get("act_fn") == "jumprelu":
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
    kind = settings.known.get("sae_type")
    # A damaged file may have a list here, which is no key.
    if kind in list(_OF_SITES):
        return _OF_SITES[kind](settings, weights)
    config, known = settings.config(), settings.known

    def tensors() -> dict[str, Tensor]:
        read, norms = settings.read(weights)
        return settings.folded(read, *settings.scales(norms, (known.get("hook_point_in"), known.get("hook_point_out"))))

    return Stored(config, path, weights, tensors)


def _crosscoder(settings: "_Settings", weights: Path) -> Stored:
    """Return the crosscoder in a file of weights.

    Gates of ReLU are the same at all sites, whatever the norms are. Those of thresholds and of selection are not, so
    each latent becomes one latent per site, which reads all sites and writes this one.
    """
    hooks, d_model, of_site = settings.hooks("hook_points"), settings.count("d_model"), settings.d_sae()
    sites, config = len(hooks), settings.config()
    shapes = {
        "W_enc": (sites, d_model, of_site), "b_enc": (sites, of_site),
        "W_dec": (sites, of_site, d_model), "b_dec": (sites, d_model),
    }  # fmt: skip
    selecting = config["architecture"] == "topk"
    gated = selecting or config["architecture"] == "jumprelu"
    if settings.known.get("sparsity_include_decoder_norm") is not True:
        raise ValueError(
            f"{settings.path}: sparsity_include_decoder_norm is "
            f"{settings.known.get('sparsity_include_decoder_norm')!r}; it is true for every crosscoder of OpenMOSS"
        )
    config["hook_name"] = hooks[0]
    if selecting:
        config["rescale_acts_by_decoder_norm"] = False
    if sites > 1:
        config |= {
            "architecture": f"{config['architecture']}_crosscoder",
            "d_in": sites * d_model,
            "d_out": sites * d_model,
            "d_sae": sites * of_site if gated else of_site,
            "parts": [[hook, d_model] for hook in hooks],
            "hook_names": hooks,
        }
        if gated:
            every = list(range(sites))
            config["blocks"] = [{"latents": of_site, "reads": every, "writes": [site]} for site in every]
        if selecting:
            config |= _selecting_each(config, sites)

    def tensors() -> dict[str, Tensor]:
        read, norms = settings.read(weights)
        check_shapes(read, shapes, _PLAIN, weights, settings.path.name)
        read = {name: tensor.float() for name, tensor in read.items()}
        scales = torch.tensor(settings.scales(norms, hooks))[:, None]
        found = {
            "W_enc": (read["W_enc"] * scales[:, :, None]).flatten(0, 1),
            "b_enc": read["b_enc"].sum(0),
            "b_dec": (read["b_dec"] / scales).flatten(),
        }
        rows = read["W_dec"] / scales[:, :, None]
        if not gated:
            return found | {"W_dec": rows.transpose(0, 1).flatten(1)}
        lengths = read["W_dec"].norm(dim=2)
        # A row without a length writes nothing, whatever its code is.
        unit = torch.where(lengths > 0, lengths, 1.0)
        W_enc, b_enc = found["W_enc"].repeat(1, sites), found["b_enc"].repeat(sites)
        of_latents = {}
        if selecting:
            # Latents are selected by codes, so these are in the unit of rows of length 1 in OpenMOSS' scale.
            W_enc, b_enc, rows = W_enc * lengths.flatten(), b_enc * lengths.flatten(), rows / unit[:, :, None]
        else:
            of_latents["threshold"] = (read["threshold"] / unit).flatten()
        return of_latents | {
            "W_enc": W_enc,
            "b_enc": b_enc,
            "b_dec": found["b_dec"],
            "W_dec": torch.block_diag(*rows),
        }

    return Stored(config, settings.path, weights, tensors)


def _selecting_each(config: Mapping[str, Any], ends: int) -> dict[str, Any]:
    """Return SAELens' words for `topk` where each layer or site selects k of its own latents."""
    return {"k": ends * config["k"], "scope": CompetitionScope.block.value}


def _cross_layer(settings: "_Settings", weights: Path) -> Stored:
    """Return the cross-layer transcoder in a file of weights; `W_D.2` is what latents of layers 0 to 2 write to 2."""
    read, written = (settings.hooks(f"hook_points_{end}") for end in ("in", "out"))
    layers, d_model, of_layer = len(read), settings.count("d_model"), settings.d_sae()
    if len(written) != layers:
        raise ValueError(f"{settings.path}: hook_points_in names {layers} sites, and hook_points_out {len(written)}")
    config = settings.config()
    if settings.known.get("act_fn") == "topk":
        config |= _selecting_each(config, layers)
    config |= {
        "architecture": f"{config['architecture']}_cross_layer_transcoder",
        "rescale_acts_by_decoder_norm": False,
        "d_in": layers * d_model,
        "d_out": layers * d_model,
        "d_sae": layers * of_layer,
        "parts": [[hook, d_model] for hook in read],
        "target_parts": [[hook, d_model] for hook in written],
        "part_norm": PartNorm.joint.value,
        "blocks": [
            {"latents": of_layer, "reads": [layer], "writes": list(range(layer, layers))} for layer in range(layers)
        ],
        "hook_name": read[0],
        "hook_names": read,
        "hook_name_out": written[0],
        "hook_names_out": written,
    }
    names = {"W_enc": "W_E", "b_enc": "b_E"}
    shapes = {"W_enc": (layers, d_model, of_layer), "b_enc": (layers, of_layer)}
    for layer in range(layers):
        names |= {f"W_dec_{layer}": f"W_D.{layer}", f"b_dec_{layer}": f"b_D.{layer}"}
        shapes |= {f"W_dec_{layer}": (layer + 1, of_layer, d_model), f"b_dec_{layer}": (d_model,)}

    def tensors() -> dict[str, Tensor]:
        found, norms = settings.read(weights, names)
        check_shapes(found, shapes, names, weights, settings.path.name)
        found = {name: tensor.float() for name, tensor in found.items()}
        scales_in, scales_out = (settings.scales(norms, hooks) for hooks in (read, written))
        # (layers that are read, latents, layers that are written, d)
        rows = torch.zeros(layers, of_layer, layers, d_model)
        for layer in range(layers):
            rows[: layer + 1, :, layer] = found[f"W_dec_{layer}"]
        lengths = rows.flatten(2).norm(dim=2) if settings.by_norm else torch.ones(layers, of_layer)
        unit = torch.where(lengths > 0, lengths, 1.0)
        rows = rows / torch.tensor(scales_out)[:, None]
        W_enc, b_enc = found["W_enc"] * torch.tensor(scales_in)[:, None, None], found["b_enc"]
        of_latents = {}
        if settings.known.get("act_fn") in ("topk", "layertopk"):
            # Latents are selected by codes, so these are in the unit of rows of length 1 in OpenMOSS' scale.
            W_enc, b_enc, rows = W_enc * lengths[:, None], b_enc * lengths, rows / unit[:, :, None, None]
        elif "threshold" in found:
            of_latents["threshold"] = (found["threshold"] / unit).flatten()
        return of_latents | {
            "W_enc": torch.block_diag(*W_enc),
            "b_enc": b_enc.flatten(),
            "W_dec": rows.flatten(2).flatten(0, 1),
            "b_dec": torch.cat([found[f"b_dec_{layer}"] / scale for layer, scale in enumerate(scales_out)]),
        }

    return Stored(config, settings.path, weights, tensors)


# Kinds of several sites, by `sae_type`.
_OF_SITES = {"crosscoder": _crosscoder, "clt": _cross_layer}


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
            "sae_type": ("sae", *_OF_SITES),
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
        if known.get("act_fn") == "layertopk" and known.get("sae_type") != "clt":
            raise ValueError(
                f"{self.path}: act_fn is 'layertopk', which OpenMOSS has for cross-layer transcoders alone (sae_type "
                "'clt'); others are read with act_fn 'relu', 'jumprelu' or 'topk'"
            )
        config: dict[str, Any] = {
            "architecture": _ARCHITECTURES[known.get("act_fn", "relu")],
            "d_in": self.count("d_model"),
            "apply_b_dec_to_input": self.centred,
            "model_name": known.get("model_name"),
            "hook_name": known.get("hook_point_in"),
            "prepend_bos": True,
            "context_size": 1024,
        }
        if known.get("norm_activation") == "token-wise":
            config["normalize_activations"] = "constant_norm_rescale"
        if config["architecture"] == "topk":
            config |= {"k": self.count("top_k"), "rescale_acts_by_decoder_norm": self.by_norm}
        if self.transcodes:
            config |= {
                "architecture": f"{config['architecture']}_transcoder",
                "apply_b_dec_to_input": False,
                "hook_name_out": known["hook_point_out"],
            }
        return config

    @property
    def transcodes(self) -> bool:
        """True if a dictionary of one site for its inputs has another one for its targets."""
        known = self.known
        of_one = known.get("sae_type") not in list(_OF_SITES)
        return of_one and known.get("hook_point_out") not in (None, known.get("hook_point_in"))

    @property
    def centred(self) -> bool:
        """True if the decoder's bias is subtracted from the inputs."""
        return bool(self.known.get("apply_decoder_bias_to_pre_encoder", False))

    @property
    def by_norm(self) -> bool:
        """True if pre-activations are multiplied by the norms of the decoder's rows before they are selected."""
        return bool(self.known.get("sparsity_include_decoder_norm", False))

    def hooks(self, key: str) -> list[str]:
        """Return the sites that a setting lists, in their order.

        Raises:
            ValueError: they are not named.
        """
        hooks = self.known.get(key)
        if not isinstance(hooks, list) or not hooks or not all(isinstance(hook, str) for hook in hooks):
            raise ValueError(f"{self.path}: {key} is {hooks!r}; it must list the names of sites")
        return hooks

    def d_sae(self) -> int:
        """Return the number of latents.

        Raises:
            ValueError: expansion_factor is impossible.
        """
        return int(self.count("d_model") * self.number("expansion_factor"))

    def read(self, weights: Path, names: Mapping[str, str] = _PLAIN) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the tensors in a file by new names, with thresholds, and the mean norms of the data set.

        Args:
            weights: the file.
            names: the file's name of each tensor, by its new name.

        Raises:
            ValueError: the file is damaged, or a tensor is missing or superfluous.
        """
        known, found = self.known, read_safetensors(weights)
        stored = [name for name in found if name.startswith(f"{_MEAN_NORM}.")]
        norms = {name.removeprefix(f"{_MEAN_NORM}."): found.pop(name).item() for name in stored}
        names, transposed = (names, ()) if "W_E" in found else (_LINEAR, ("W_enc", "W_dec"))
        # Cross-layer transcoders have biases, whatever the setting says.
        if known.get("use_decoder_bias") is False and "b_dec" in names:
            found[names["b_dec"]] = torch.zeros(self.count("d_model"))
        if _ARCHITECTURES[known.get("act_fn", "relu")] == "jumprelu":
            theirs = f"activation_function.{_LOG_THRESHOLD}"
            names = {**names, "threshold": theirs if theirs in found else _LOG_THRESHOLD}
        read = renamed(found, names, weights, transposed)
        if "threshold" in read:
            read["threshold"] = read["threshold"].float().exp()
        of_config = known.get(_MEAN_NORM)
        return read, norms | (of_config if isinstance(of_config, dict) else {})

    def scales(self, norms: Mapping[str, Any], ends: Sequence[Any]) -> list[float]:
        """Return the factors of several ends, which give activations of the mean norm the norm sqrt(d_model).

        Args:
            norms: mean norms of the data set.
            ends: the names of the ends' norms, such as those of the inputs and the targets.

        Raises:
            ValueError: a norm is missing or impossible.
        """
        if self.known.get("norm_activation", _DATASET) != _DATASET:
            return [1.0] * len(ends)
        for end in ends:
            norm = norms.get(end)
            if isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 < norm < math.inf:
                raise ValueError(f"{self.path}: {_MEAN_NORM} of {end} is {norm!r}; it must be a positive number")
        return [self.count("d_model") ** 0.5 / norms[end] for end in ends]

    def folded(self, tensors: dict[str, Tensor], scale_in: float, scale_out: float) -> dict[str, Tensor]:
        """Return the tensors for raw activations, and thresholds for plain pre-activations."""
        if self.transcodes and self.centred:
            # OpenMOSS subtracts the bias from the inputs of a transcoder, too.
            W_enc, b_dec = tensors["W_enc"].float(), tensors["b_dec"].float()
            tensors["b_enc"] = tensors["b_enc"].float() - b_dec @ W_enc
        if "threshold" in tensors and self.by_norm:
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

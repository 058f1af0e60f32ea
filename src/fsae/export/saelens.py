"""Autoencoders as SAELens keeps them: a folder with `cfg.json` and `sae_weights.safetensors`."""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsae.autoencoders.base import Autoencoder, AutoencoderSettings, DecoderNorm
from fsae.autoencoders.batch_topk import BatchTopK
from fsae.autoencoders.gated import Gated, GatedSettings
from fsae.autoencoders.jumprelu import JumpReLU, JumpReLUSettings
from fsae.autoencoders.local_pca import KMeansSettings, LocalPCA, LocalPCASettings
from fsae.autoencoders.standard import StandardSettings
from fsae.autoencoders.topk import AbsTopK, AbsTopKSettings, TopK, TopKSettings

log = logging.getLogger(__name__)

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
SPARSITY = "sparsity.safetensors"

# The version whose layout is written. A reader takes a file that names no version, or one below 6, for the older
# layout and drops its metadata.
FORMAT_VERSION = "6.54.12"

# SAELens' word for an architecture -> its tensors: (d_in, d_sae), (d_sae, d_in), (d_in,), and these of (d_sae,).
PER_LATENT = {
    "standard": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "jumprelu": ("b_enc", "threshold"),
    "topk": ("b_enc",),
    "abstopk": ("b_enc",),
    "kmeans": ("b_enc",),
    "local_pca": ("b_enc",),
}
# Of these SAELens has none: no code of its architectures says in which cell an input lies.
OURS_ALONE = ("kmeans", "local_pca")

# SAELens adds this before the logarithm, so that a latent that never fired has a finite entry.
LEAST_FREQUENCY = 1e-10


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What the autoencoder was trained on, in SAELens' names; None where it does not apply.

    Attributes:
        model_name: the language model.
        hook_name: TransformerLens' name of the site.
        context_size: tokens of a sequence.
        prepend_bos: whether every sequence began with the model's first token.
        dataset_path: the text.
        exclude_special_tokens: ids of tokens whose activations were left out, or whether the tokenizer's were.
        max_activation_norm: activations of a greater norm were left out, too; not a name of SAELens'.
    """

    model_name: str | None = None
    hook_name: str | None = None
    context_size: int | None = None
    prepend_bos: bool | None = None
    dataset_path: str | None = None
    exclude_special_tokens: list[int] | bool | None = None
    max_activation_norm: float | None = None


def save_saelens(
    autoencoder: Autoencoder,
    folder: Path,
    provenance: Provenance,
    firing_frequency: Float[Tensor, " d_sae"] | None = None,
) -> None:
    """Write an autoencoder for raw activations (see `fold`) so that `sae_lens.SAE.load_from_disk` opens it.

    SAELens opens every architecture with the same codes and reconstruction: batch_topk as `jumprelu`, with its one
    threshold for each latent, as SAELens saves its own; abs_topk as `abstopk`, which sae_lens 6.54 knows.
    PCA is an abs_topk whose latents are all on. kmeans and local_pca are written alike, under their own names, which
    SAELens refuses; `load_saelens` opens them.
    Weights are written in float32. The folder is written aside and renamed: a crash leaves the earlier one, the new one
    or none, never half of one.

    Args:
        autoencoder: what it sees is taken to be raw activations; nothing is folded here.
        folder: replaced if it exists.
        provenance: what it was trained on.
        firing_frequency: share of samples on which each latent fires; kept as log10 in `sparsity.safetensors`.

    Raises:
        OSError: the disk is full or the folder cannot be written; an earlier folder is untouched.
    """
    architecture, tensors, extra = _contents(autoencoder)
    if architecture in OURS_ALONE:
        log.warning("SAELens cannot express %s: %s is in its layout, but for task=eval alone", architecture, folder)
    config = {
        "architecture": architecture,
        "d_in": autoencoder.d_in,
        "d_sae": autoencoder.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": autoencoder.centre is not None,
        "normalize_activations": "none",
        # SAELens meets attn_z as (..., head, d_head) and has to be told to concatenate the heads, as we do.
        "reshape_activations": "hook_z" if (provenance.hook_name or "").endswith("hook_z") else "none",
        **extra,
        "metadata": {
            "sae_lens_version": FORMAT_VERSION,
            "sae_lens_training_version": None,
            "training_architecture": "batchtopk" if isinstance(autoencoder, BatchTopK) else architecture,
            **asdict(provenance),
        },
    }
    aside, earlier = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.earlier")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        save_file(_plain(tensors), aside / WEIGHTS)
        (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if firing_frequency is not None:
            save_file(_plain({"sparsity": torch.log10(firing_frequency + LEAST_FREQUENCY)}), aside / SPARSITY)
        for path in aside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        # A folder that holds files cannot be replaced in one step.
        if folder.exists():
            shutil.rmtree(earlier, ignore_errors=True)
            folder.rename(earlier)
        aside.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise OSError(
            f"cannot write the autoencoder to {folder}: {error}; free space there, or choose another folder"
        ) from error


def _contents(autoencoder: Autoencoder) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """SAELens' word for the architecture, its tensors, and what only this architecture has in cfg.json."""
    tensors: dict[str, Tensor] = {name: getattr(autoencoder, name) for name in ("W_enc", "W_dec", "b_dec")}
    if isinstance(autoencoder, Gated):
        biases = {name: autoencoder.get_parameter(name) for name in PER_LATENT["gated"]}
        return "gated", {**tensors, **biases}, {}
    tensors["b_enc"] = autoencoder.get_parameter("b_enc")
    if isinstance(autoencoder, LocalPCA):
        return "local_pca" if autoencoder.rank else "kmeans", tensors, {"rank": autoencoder.rank}
    if isinstance(autoencoder, TopK):
        extra = {"k": autoencoder.settings.k, "rescale_acts_by_decoder_norm": False}
        return "abstopk" if isinstance(autoencoder, AbsTopK) else "topk", tensors, extra
    if isinstance(autoencoder, JumpReLU):
        return "jumprelu", {**tensors, "threshold": autoencoder.threshold}, {}
    if isinstance(autoencoder, BatchTopK):
        threshold = autoencoder.threshold.clamp_min(0).expand(autoencoder.d_sae)
        return "jumprelu", {**tensors, "threshold": threshold}, {}
    return "standard", tensors, {}


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: laid out as their shape says (W_enc is held transposed), sharing nothing."""
    return {
        name: tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def load_saelens(folder: Path) -> Autoencoder:
    """An autoencoder from a folder in SAELens' format, ours or sae_lens' own, as our class in evaluation mode.

    It takes raw activations; attn_z with its heads concatenated. Weights are read as float32. `jumprelu` is what both
    our jumprelu and our batch_topk become, so it is read as jumprelu. A topk that chooses by pre-activation times
    decoder norm (`rescale_acts_by_decoder_norm`) is folded to unit rows, which is exact.

    Raises:
        ValueError: the folder or one of its files is missing or damaged, a tensor is missing, superfluous or of the
            wrong shape, the architecture is unknown, or cfg.json asks for something that would not be done.
    """
    config = _read_config(folder)
    architecture = _architecture(config, folder)
    d_in, d_sae = (_size(config, key, folder) for key in ("d_in", "d_sae"))
    _refuse_unhonoured(config, folder)
    tensors = _read_weights(folder, _shapes(architecture, d_in, d_sae))
    autoencoder = _settings(architecture, config, d_sae, folder).build(d_in, torch.Generator()).eval()
    if config.get("rescale_acts_by_decoder_norm"):
        norms = tensors["W_dec"].norm(dim=1)
        tensors["W_enc"] *= norms
        tensors["b_enc"] *= norms
        tensors["W_dec"] /= norms[:, None]
    if "threshold" in tensors:
        # Below zero the relu decides, as at zero.
        tensors["log_threshold"] = tensors.pop("threshold").clamp_min(0).log()
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(tensors[name])
    return autoencoder


def read_provenance(folder: Path) -> Provenance:
    """What the autoencoder in a folder in SAELens' format was trained on, as far as its cfg.json says.

    Raises:
        ValueError: the folder or its cfg.json is missing or damaged.
    """
    config = _read_config(folder)
    # Before its version 6 SAELens kept these at the top.
    known = config | (config.get("metadata") or {})
    return Provenance(**{field.name: known.get(field.name) for field in fields(Provenance)})


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one that holds {CONFIG} and {WEIGHTS}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; an autoencoder in SAELens' format is a {CONFIG} and a {WEIGHTS}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({error}); save or download it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} holds {type(config).__name__}, not an object; save or download it again")
    return config


def _architecture(config: dict[str, Any], folder: Path) -> str:
    """The architecture's name; files from before sae_lens 6 may name an activation function instead."""
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if activation not in ("relu", "topk"):
        raise ValueError(
            f"{folder / CONFIG}: the activation function {activation!r} is not known; known are relu, topk"
        )
    architecture = "topk" if activation == "topk" else config.get("architecture", "standard")
    if architecture not in PER_LATENT:
        raise ValueError(
            f"{folder / CONFIG}: the architecture {architecture!r} is not known; known are {', '.join(PER_LATENT)}"
        )
    return architecture


def _size(config: dict[str, Any], key: str, folder: Path) -> int:
    size = config.get(key)
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{folder / CONFIG}: {key} is {size!r}; it must be a positive whole number")
    return size


def _refuse_unhonoured(config: dict[str, Any], folder: Path) -> None:
    normalisation = config.get("normalize_activations") or "none"
    if normalisation is True or normalisation == "expected_average_only_in":
        raise ValueError(
            f"{folder / CONFIG}: normalize_activations is {normalisation!r}, but the factor is not in the file; fold "
            "it in sae_lens (fold_activation_norm_scaling_factor) and save again"
        )
    if normalisation != "none":
        raise ValueError(
            f"{folder / CONFIG}: normalize_activations is {normalisation!r}, which changes every input in its own way "
            "and is not supported; only 'none' is"
        )
    reshaping = config.get("reshape_activations", "none")
    if reshaping not in ("none", "hook_z"):
        raise ValueError(f"{folder / CONFIG}: reshape_activations is {reshaping!r}; only 'none' and 'hook_z' are known")
    if config.get("finetuning_scaling_factor"):
        raise ValueError(f"{folder / CONFIG}: finetuning_scaling_factor is set, which is not supported")


def _shapes(architecture: str, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    per_latent = dict.fromkeys(PER_LATENT[architecture], (d_sae,))
    return {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,), **per_latent}


def _read_weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); save or download it again") from error
    # Some files from before sae_lens 6 carry a factor per latent that was never trained.
    if "scaling_factor" in tensors and (tensors["scaling_factor"] == 1).all():
        del tensors["scaling_factor"]
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"{path} has no {name}; it holds {', '.join(sorted(tensors))}")
        if tensors[name].shape != shape:
            raise ValueError(f"{path}: {name} is {tuple(tensors[name].shape)}, by {CONFIG} it should be {shape}")
    if superfluous := sorted(tensors.keys() - shapes.keys()):
        raise ValueError(f"{path} holds {', '.join(superfluous)}, which this architecture has no use for")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _settings(architecture: str, config: dict[str, Any], d_sae: int, folder: Path) -> AutoencoderSettings:
    if architecture == "kmeans":
        return KMeansSettings(d_sae=d_sae)
    if architecture == "local_pca":
        return LocalPCASettings(d_sae=d_sae, rank=_size(config, "rank", folder))
    common: dict[str, Any] = {
        "d_sae": d_sae,
        "apply_b_dec_to_input": config.get("apply_b_dec_to_input", True),
        "decoder_norm": DecoderNorm.free,
    }
    if architecture in ("topk", "abstopk"):
        # Before sae_lens 6 k stood among the activation function's arguments.
        k = _size({"k": config.get("k", config.get("activation_fn_kwargs", {}).get("k"))}, "k", folder)
        if k > d_sae:
            raise ValueError(f"{folder / CONFIG}: k is {k}, more than the {d_sae} latents there are")
        return (AbsTopKSettings if architecture == "abstopk" else TopKSettings)(k=k, **common)
    simple = {"standard": StandardSettings, "gated": GatedSettings, "jumprelu": JumpReLUSettings}
    return simple[architecture](**common)

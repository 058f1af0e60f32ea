"""SAELens' format of autoencoders: a folder with `cfg.json` and `sae_weights.safetensors`."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.choices import CHOICES
from fsae.autoencoders.settings import AutoencoderSettings, count_in
from fsae.files import replacing, share_as_folder
from fsae.plugins import with_outside

log = logging.getLogger(__name__)

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
SPARSITY = "sparsity.safetensors"

# The version whose layout is written. A reader takes a file that names no version, or one below 6, for the older
# layout and drops its metadata.
FORMAT_VERSION = "6.54.12"

# The types that stored weights may have.
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Weights of autoencoders of raw activations are far smaller; products of greater numbers overflow float32.
_LARGEST_WEIGHT = 1e12

# Arguments of opening a language model that do not change its activations.
_HARMLESS_OPENING = {
    "dtype", "torch_dtype", "device", "device_map", "n_devices", "move_to_device", "low_cpu_mem_usage", "cache_dir",
    "local_files_only", "default_padding_side", "attn_implementation",
}  # fmt: skip

# SAELens adds this before the logarithm, so that a latent that never fired has a finite entry.
LEAST_DENSITY = 1e-10


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The origin of the vectors that an autoencoder was trained on; None if an attribute does not apply.

    The names are SAELens' own, except for `model_note`, `max_activation_norm`, `prefix` and `chat_roles`. So is that of
    `matryoshka_widths`, which SAELens has among the settings of a training.

    Attributes:
        model_name: the language model, as TransformerLens and SAELens open it.
        model_note: the difference of its weights from those under that name, such as a quantisation or a revision.
        hook_name: TransformerLens' name of the site.
        context_size: tokens per sequence.
        prepend_bos: whether every sequence began with the model's first token.
        dataset_path: path or name of the text.
        exclude_special_tokens: ids of tokens whose activations were left out, or whether those of the
            tokenizer's special tokens were.
        seqpos_slice: start, and optionally stop and step, of the positions of a sequence that counted.
        max_activation_norm: activations of a greater norm were left out.
        prefix: text that every row began with, and whose positions did not count.
        chat_roles: roles of a chat whose words counted.
        matryoshka_widths: numbers of first latents that were trained to reconstruct the vectors on their own.
    """

    model_name: str | None = None
    model_note: str | None = None
    hook_name: str | None = None
    context_size: int | None = None
    prepend_bos: bool | None = None
    dataset_path: str | None = None
    exclude_special_tokens: list[int] | bool | None = None
    seqpos_slice: list[int | None] | None = None
    max_activation_norm: float | None = None
    prefix: str | None = None
    chat_roles: list[str] | None = None
    matryoshka_widths: list[int] | None = None


def save_saelens(
    autoencoder: Autoencoder,
    folder: Path,
    provenance: Provenance,
    density: Float[Tensor, " d_sae"] | None = None,
) -> None:
    """Write an autoencoder for raw activations (see `fold`) so that `sae_lens.SAE.load_from_disk` opens it.

    SAELens opens every architecture with the same codes and reconstruction: batch_topk as `jumprelu`, with its one
    threshold for each latent, as SAELens saves its own; abs_topk as `abstopk`, which sae_lens 6.54 knows.
    PCA is an abs_topk whose latents are all on. kmeans and local_pca are written alike, under their own names, which
    SAELens refuses; `load_saelens` opens them.
    Weights are written in float32. The folder is written under a temporary name and renamed: a crash leaves the earlier
    folder, the new one or none, but no partial one.

    Args:
        autoencoder: an autoencoder for raw activations; nothing is folded here.
        folder: replaced if it exists.
        provenance: the origin of its training vectors.
        density: share of samples on which each latent fires; kept as log10 in `sparsity.safetensors`.

    Raises:
        ValueError: the architecture does not define its form in SAELens' format.
        OSError: the disk is full or the folder cannot be written; an earlier folder is untouched.
    """
    autoencoder.check_algebra()
    form = autoencoder.to_saelens()
    if not form.known:
        log.warning(
            "SAELens has no architecture %s: %s is in its layout, but only fsae opens it (fsae.load, task=eval)",
            form.architecture,
            folder,
        )
    config = {
        "architecture": form.architecture,
        "d_in": autoencoder.d_in,
        "d_sae": autoencoder.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": autoencoder.centre is not None,
        "normalize_activations": "none",
        # SAELens reads attn_z as (..., head, d_head), and concatenates the heads as fsae does only with this setting.
        "reshape_activations": "hook_z" if (provenance.hook_name or "").endswith("hook_z") else "none",
        **form.config,
        "metadata": {
            "sae_lens_version": FORMAT_VERSION,
            "sae_lens_training_version": None,
            "training_architecture": form.trained_as or form.architecture,
            **asdict(provenance),
        },
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder) as unfinished:
            unfinished.mkdir()
            save_file(_plain(form.tensors), unfinished / WEIGHTS)
            (unfinished / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            if density is not None:
                _write_density(unfinished / SPARSITY, density)
            for path in unfinished.iterdir():
                share_as_folder(path)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"cannot write the autoencoder to {folder}: {error}; free space there, or choose another folder"
        ) from error


def save_density(folder: Path, density: Float[Tensor, " d_sae"]) -> None:
    """Add the share of samples on which each latent fires to an exported autoencoder, as `save_saelens` writes it.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    path = folder / SPARSITY
    try:
        with replacing(path) as unfinished:
            _write_density(unfinished, density)
            share_as_folder(unfinished)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}; free space there") from error


def _write_density(path: Path, density: Float[Tensor, " d_sae"]) -> None:
    save_file(_plain({"sparsity": torch.log10(density + LEAST_DENSITY)}), path)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: contiguous (W_enc is held transposed) and without shared memory."""
    return {
        name: tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def load_members(folder: Path) -> list[Autoencoder]:
    """Return the autoencoder in a folder in SAELens' format, or a population's members in folders `0`, `1`, ... of it.

    Raises:
        ValueError: as `load_saelens`.
    """
    if (folder / CONFIG).exists() or not (folder / "0").is_dir():
        return [load_saelens(folder)]
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    return [load_saelens(folder / str(number)) for number in numbers]


def load_saelens(folder: Path) -> Autoencoder:
    """Return the autoencoder in a folder in SAELens' format, written by fsae or sae_lens, in evaluation mode.

    It takes raw activations; attn_z with its heads concatenated. Weights are read as float32. Both fsae's jumprelu and
    its batch_topk are written as `jumprelu`, which is read as jumprelu. A topk that chooses by pre-activation times
    decoder norm (`rescale_acts_by_decoder_norm`) is folded to unit rows, which is exact.

    Raises:
        ValueError: the folder or one of its files is missing or damaged, a tensor is missing, superfluous or of the
            wrong shape, the architecture is unknown, or cfg.json asks for something that fsae does not support.
    """
    config = _read_config(folder)
    architecture, kind = _architecture(config, folder)
    d_in, d_sae = (_size(config, key, folder) for key in ("d_in", "d_sae"))
    _refuse_unhonoured(config, folder)
    try:
        settings = kind.from_saelens(architecture, config, d_sae)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    tensors = _read_weights(folder, settings.saelens_shapes(d_in))
    autoencoder = settings.build(d_in, torch.Generator()).eval()
    if config.get("rescale_acts_by_decoder_norm"):
        norms = tensors["W_dec"].norm(dim=1)
        tensors["W_enc"] *= norms
        tensors["b_enc"] *= norms
        # A row of zeros stays one, whatever it is divided by.
        tensors["W_dec"] /= torch.where(norms > 0, norms, 1.0)[:, None]
    try:
        autoencoder.load_saelens(tensors)
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS}: {error}") from None
    return autoencoder


def read_density(folder: Path) -> Float[Tensor, " d_sae"] | None:
    """Read the share of samples on which each latent is on from a folder in SAELens' format; None if it has none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / SPARSITY
    if not path.exists():
        return None
    try:
        logarithms = load_file(path)["sparsity"].float()
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); delete it, or save it again") from error
    return (10**logarithms - LEAST_DENSITY).clamp_min(0)


# Names in SAELens' oldest layout, of 2024, and their names today.
_OLDEST_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
}
# Keys that are read or refused, and may therefore not have two different values.
_SAID = {field.name for field in fields(Provenance)} | {*_OLDEST_NAMES.values(), "hook_name_out", "hook_point_out"}


def read_provenance(folder: Path) -> Provenance:
    """Return the provenance in the cfg.json of a folder in SAELens' format.

    Raises:
        ValueError: the folder or its cfg.json is missing or damaged, contradicts itself, or names training vectors that
            fsae does not support: those of one attention head, or of two sites.
    """
    path = folder / CONFIG
    known = _flat(_read_config(folder), path)

    def read(name: str, kind: type, wanted: str) -> Any:
        value = known.get(name)
        # In Python True is a whole number.
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is int)):
            raise ValueError(f"{path}: {name} is {value!r}; it must be {wanted}, or null")
        return value

    hook_name, layer = read("hook_name", str, "the name of a site"), read("hook_layer", int, "a whole number")
    if layer is not None and (hook_name or "").startswith("blocks.") and f"blocks.{layer}." not in str(hook_name):
        raise ValueError(f"{path}: hook_name is {hook_name!r}, but hook_layer is {layer}; correct the wrong one")
    if (head := known.get("hook_head_index")) is not None:
        raise ValueError(
            f"{path}: hook_head_index is {head!r}: it was made for one attention head alone, which is not supported; "
            "all heads of attn_z together are"
        )
    for name in ("hook_name_out", "hook_point_out"):
        if known.get(name) not in (None, hook_name):
            raise ValueError(
                f"{path}: {name} is {known[name]!r}, another site than it reads ({hook_name!r}): it is a transcoder, "
                "which is not supported"
            )
    context_size = read("context_size", int, "a positive whole number")
    if context_size is not None and context_size < 1:
        raise ValueError(f"{path}: context_size is {context_size}; it must be a positive whole number, or null")
    special = known.get("exclude_special_tokens")
    if not (special is None or isinstance(special, bool) or _is_list_of(special, int)):
        raise ValueError(
            f"{path}: exclude_special_tokens is {special!r}; it must be true, false, a list of token ids, or null"
        )
    positions = known.get("seqpos_slice")
    if positions is not None and not (_is_list_of(positions, int | None) and 1 <= len(positions) <= 3):
        raise ValueError(f"{path}: seqpos_slice is {positions!r}; it must be a list of start, stop and step, or null")
    norm = known.get("max_activation_norm")
    if norm is not None and (isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 < norm < math.inf):
        raise ValueError(f"{path}: max_activation_norm is {norm!r}; it must be a positive number, or null")
    roles = known.get("chat_roles")
    if roles is not None and not _is_list_of(roles, str):
        raise ValueError(f"{path}: chat_roles is {roles!r}; it must be a list of roles, or null")
    widths = known.get("matryoshka_widths")
    if widths is not None and not _is_list_of(widths, int):
        raise ValueError(f"{path}: matryoshka_widths is {widths!r}; it must be a list of whole numbers, or null")
    return Provenance(
        model_name=read("model_name", str, "the name of a model"),
        model_note=read("model_note", str, "a text"),
        hook_name=hook_name,
        context_size=context_size,
        prepend_bos=read("prepend_bos", bool, "true or false"),
        dataset_path=read("dataset_path", str, "the name of a data set"),
        exclude_special_tokens=special,
        seqpos_slice=positions,
        max_activation_norm=norm,
        prefix=read("prefix", str, "a text"),
        chat_roles=roles,
        matryoshka_widths=widths,
    )


def _flat(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the content of cfg.json under today's names and in one dictionary: SAELens before 6 had no `metadata`.

    Raises:
        ValueError: `metadata` is no object, a key has two different values, or the language model was opened in a way
            that changes its activations.
    """
    metadata = config.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise ValueError(f"{path}: metadata is {metadata!r}; it must be an object, or null")
    flat: dict[str, Any] = {}
    for part, where in ((config, ""), (metadata or {}, "metadata.")):
        _check_opening(part.get("model_from_pretrained_kwargs"), f"{path}: {where}model_from_pretrained_kwargs")
        for key, value in part.items():
            name = _OLDEST_NAMES.get(key, key)
            if value is None:
                continue
            if name in _SAID and flat.get(name, value) != value:
                raise ValueError(
                    f"{path}: {name} is {flat[name]!r}, but {where}{key} is {value!r}; correct the wrong one"
                )
            flat[name] = value
    return flat


def _check_opening(arguments: object, where: str) -> None:
    """Refuse activations of a language model whose weights were processed when it was opened (`fold_ln`)."""
    if arguments is None:
        return
    if not isinstance(arguments, dict):
        raise ValueError(f"{where} is {arguments!r}; it must be an object, or null")
    if changing := {name: value for name, value in arguments.items() if value and name not in _HARMLESS_OPENING}:
        said = ", ".join(f"{name}={value!r}" for name, value in changing.items())
        raise ValueError(
            f"{where} has {said}: the autoencoder was made for the activations of a model that was opened so, and here "
            "it is opened as published; only an autoencoder of such activations can be evaluated"
        )


def _is_list_of(value: object, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) and not isinstance(each, bool) for each in value)


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one that holds {CONFIG} and {WEIGHTS}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; an autoencoder in SAELens' format is a {CONFIG} and a {WEIGHTS}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{folder / CONFIG} is nested too deeply to be read; save or download it again") from None
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({error}); save or download it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} holds {type(config).__name__}, not an object; save or download it again")
    return config


def _architecture(config: dict[str, Any], folder: Path) -> tuple[str, type[AutoencoderSettings]]:
    """Return SAELens' name of the architecture and the settings class that reads it.

    Files from before sae_lens 6 may name an activation function instead.
    """
    path = folder / CONFIG
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    if activation not in ("relu", "topk"):
        raise ValueError(f"{path}: the activation function {activation!r} is not known; known are relu, topk")
    architecture = config.get("architecture", "standard")
    choices = with_outside("arch", CHOICES, AutoencoderSettings)
    known = {name: kind for kind in choices.values() for name in kind.saelens_names}
    if not isinstance(architecture, str) or architecture not in known:
        raise ValueError(f"{path}: the architecture {architecture!r} is not known; known are {', '.join(known)}")
    if activation == "topk" and architecture not in ("standard", "topk"):
        raise ValueError(f"{path}: the architecture is {architecture}, but the activation function is topk")
    architecture = "topk" if activation == "topk" else architecture
    arguments = config.get("activation_fn_kwargs")
    if arguments is not None and not isinstance(arguments, dict):
        raise ValueError(f"{path}: activation_fn_kwargs is {arguments!r}; it must be an object, or null")
    if superfluous := sorted(set(arguments or {}) - ({"k"} if architecture == "topk" else set())):
        raise ValueError(
            f"{path}: activation_fn_kwargs names {', '.join(superfluous)}, which {architecture} has no use for"
        )
    return architecture, known[architecture]


def _size(config: dict[str, Any], key: str, folder: Path) -> int:
    try:
        return count_in(config, key)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None


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
    if (d_out := config.get("d_out")) not in (None, config["d_in"]):
        raise ValueError(
            f"{folder / CONFIG}: d_out is {d_out!r}, but d_in is {config['d_in']}: it is a transcoder, which is not "
            "supported"
        )
    for key in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        if not isinstance(config.get(key, False), bool):
            raise ValueError(f"{folder / CONFIG}: {key} is {config[key]!r}; it must be true or false")
    dtype = config.get("dtype") or "float32"
    if not isinstance(dtype, str) or dtype.removeprefix("torch.") not in _DTYPES:
        raise ValueError(f"{folder / CONFIG}: dtype is {dtype!r}; known are {', '.join(_DTYPES)}")


def _read_weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); save or download it again") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES.values():
            raise ValueError(
                f"{path}: {name} is of {str(tensor.dtype).removeprefix('torch.')}, which weights cannot be; they are "
                f"read in {', '.join(_DTYPES)}"
            )
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
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    for name, tensor in weights.items():
        if not (finite := torch.isfinite(tensor)).all():
            raise ValueError(
                f"{path}: {int((~finite).sum())} of {tensor.numel()} numbers of {name} are not finite; save or "
                "download it again"
            )
        if not (largest := tensor.abs().max().item()) <= _LARGEST_WEIGHT:
            raise ValueError(
                f"{path}: {name} goes up to {largest:.3g}, beyond any weight of an autoencoder (at most "
                f"{_LARGEST_WEIGHT:.0e}); save or download it again"
            )
    for name in ("W_enc", "W_dec"):
        if name in weights and not weights[name].any():
            raise ValueError(f"{path}: {name} is all zero, so it explains nothing; save or download it again")
    return weights

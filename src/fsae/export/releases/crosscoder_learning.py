"""science-of-finetuning's crosscoder_learning (Minder et al. 2025, arXiv 2504.02922): `model.safetensors` with
`config.json`, as `PyTorchModelHubMixin` writes them.

It has two kinds. `CrossCoder` has ReLU codes. `BatchTopKCrossCoder` compares ReLU codes times a norm of the decoder's
rows, its `code_normalization`, with one threshold.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import PartNorm
from fsae.autoencoders.settings import count_in
from fsae.export.between import saelens_form, split_name
from fsae.export.config_files import read_json
from fsae.export.provenance import Provenance, provenance_of
from fsae.export.releases.release import Release
from fsae.export.stored import Stored
from fsae.export.tensor_files import check_shapes, names_in, plain, read_safetensors, renamed, write_safetensors

_CONFIG, _FILE = "config.json", "model.safetensors"
# The origin of the vectors, which the layout has no place for. crosscoder_learning does not read it.
PROVENANCE = "provenance.json"

_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}
_MEAN, _STD, _SCALE, _TARGET = "activation_mean", "activation_std", "activation_global_scale", "target_rms"
_BUFFERS = ("code_normalization_id", "k", _MEAN, _STD, _SCALE, _TARGET)
# What it adds to variances and scales.
_EPSILON = 1e-8
# Differences between thresholds that are one, relative to it.
_ROUNDING = 1e-5
# The weights of the two norms in a mixed one, if config.json does not name them.
_MIXED = {"sae": 1.0, "cc": 0.1}


class CodeNormalization(Enum):
    """The norms by which codes are multiplied before the threshold, and in the sparsity term, by their stored ids."""

    CROSSCODER = 1
    SAE = 2
    MIXED = 3
    NONE = 4
    DECOUPLED = 5


def save_crosscoder(autoencoder: Autoencoder, folder: Path, provenance: Provenance, k: int | None, source: Path) -> str:
    """Write a crosscoder into a folder.

    Its threshold is one for all latents, of codes times norms of decoder rows. If thresholds times norms are not equal,
    the threshold is one of plain codes, in another unit: each latent's code is divided by its threshold, and its
    decoder row multiplied.

    Args:
        autoencoder: a crosscoder for raw activations.
        folder: an empty one.
        provenance: the origin of its vectors.
        k: the mean number of active latents, which crosscoder_learning uses if it is called without its threshold.
        source: where it is from, for messages.

    Returns:
        The name of crosscoder_learning's class that opens it.

    Raises:
        ValueError: its codes are those of no ReLU and of no thresholds, or its sites differ in width.
    """
    ends = autoencoder.ends
    form = saelens_form(autoencoder)
    config, kind = split_name({"architecture": form.architecture})
    if not ends.same or kind is None:
        raise ValueError(f"{source} has a {form.architecture}, which is no crosscoder; train with layout=crosscoder")
    if config["architecture"] not in ("standard", "jumprelu"):
        raise ValueError(
            f"{source} has a {form.architecture}, and crosscoder_learning computes codes by ReLU or by a threshold "
            "alone; train with arch=batch_topk, which is stored with its threshold, arch=jumprelu or arch=standard"
        )
    sites, d_site = len(ends.input.parts), ends.input.widths[0]
    if ends.input.widths != [d_site] * sites:
        raise ValueError(
            f"{source} has sites of the widths {', '.join(map(str, ends.input.widths))}, and crosscoder_learning takes "
            "sites of one width"
        )
    tensors = plain(form.tensors)
    if autoencoder.centre is not None:
        tensors["b_enc"] = tensors["b_enc"] - tensors["b_dec"] @ tensors["W_enc"]
    threshold = tensors.pop("threshold", None)
    norm = CodeNormalization.CROSSCODER if ends.part_norm is PartNorm.sum else CodeNormalization.SAE
    rows = tensors["W_dec"].unflatten(1, (sites, d_site)).transpose(0, 1)
    if threshold is not None and _equal(scores := threshold * _norms(rows, norm, {})):
        tensors["threshold"] = scores.mean()
    elif threshold is not None:
        norm = CodeNormalization.NONE
        tensors["threshold"] = threshold.max()
        if (threshold == 0).any() and tensors["threshold"] > 0:
            raise ValueError(
                f"{source} has thresholds of 0 and others, and crosscoder_learning has one for all latents, which no "
                "change of unit gives them"
            )
        unit = torch.where(threshold > 0, tensors["threshold"] / threshold, 1.0)
        for name in ("W_enc", "b_enc"):
            tensors[name] = tensors[name] * unit
        tensors["W_dec"] = tensors["W_dec"] / unit[:, None]
    written = {
        "encoder.weight": tensors["W_enc"].unflatten(0, (sites, d_site)),
        "encoder.bias": tensors["b_enc"],
        "decoder.weight": tensors["W_dec"].unflatten(1, (sites, d_site)).transpose(0, 1).contiguous(),
        "decoder.bias": tensors["b_dec"].unflatten(0, (sites, d_site)),
        "code_normalization_id": torch.tensor(norm.value),
    }
    known = {
        "activation_dim": d_site,
        "dict_size": autoencoder.d_sae,
        "num_layers": sites,
        "code_normalization": norm.name,
    }
    if threshold is not None:
        written["threshold"] = tensors["threshold"]
        if k is not None:
            written["k"], known["k"] = torch.tensor(k, dtype=torch.int32), k
    write_safetensors(written, folder / _FILE)
    (folder / _CONFIG).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    (folder / PROVENANCE).write_text(json.dumps(asdict(provenance), indent=2) + "\n", encoding="utf-8")
    return "CrossCoder" if threshold is None else "BatchTopKCrossCoder"


def read_crosscoder_learning(folder: Path) -> Stored:
    """Return the crosscoder in a folder.

    Raises:
        ValueError: a file is damaged, or config.json is of another kind of model.
    """
    path, weights = folder / _CONFIG, folder / _FILE
    known = read_json(path)
    try:
        d_site, d_sae, sites = (count_in(known, key) for key in ("activation_dim", "dict_size", "num_layers"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; it is no crosscoder of crosscoder_learning") from None
    for key, whole in (("encoder_layers", list(range(sites))), ("num_decoder_layers", sites)):
        if known.get(key) not in (None, whole):
            raise ValueError(f"{path}: {key} is {known[key]!r}, which is not supported; it must be all sites, or null")
    name = str(known.get("code_normalization") or CodeNormalization.CROSSCODER.name).upper()
    if name not in CodeNormalization.__members__:
        raise ValueError(
            f"{path}: code_normalization is {name!r}, which is not known; known are "
            f"{', '.join(CodeNormalization.__members__)}"
        )
    norm, jumps = CodeNormalization[name], "threshold" in names_in(weights)
    if norm is CodeNormalization.DECOUPLED and jumps:
        raise ValueError(
            f"{path}: code_normalization is {name!r}, with codes of their own at each site; fsae has crosscoders whose "
            "sites share the codes"
        )
    origin = read_json(folder / PROVENANCE) if (folder / PROVENANCE).is_file() else {}
    named = _names_of_parts(provenance_of(origin, folder / PROVENANCE)) or [str(site) for site in range(sites)]
    config = {
        "architecture": f"{'jumprelu' if jumps else 'standard'}_crosscoder",
        "d_in": sites * d_site,
        "d_out": sites * d_site,
        "d_sae": d_sae,
        "parts": [[each, d_site] for each in named],
        "part_norm": (PartNorm.joint if norm is CodeNormalization.SAE else PartNorm.sum).value,
        "apply_b_dec_to_input": False,
        "metadata": origin,
    }
    shapes = {
        "W_enc": (sites, d_site, d_sae), "b_enc": (d_sae,), "W_dec": (sites, d_sae, d_site), "b_dec": (sites, d_site),
    }  # fmt: skip

    def tensors() -> dict[str, Tensor]:
        stored = read_safetensors(weights)
        names = _NAMES | ({"threshold": "threshold"} if jumps else {})
        found = {key: tensor.float() for key, tensor in renamed(stored, names, weights, ignored=_BUFFERS).items()}
        check_shapes(found, shapes, names, weights, path.name)
        if jumps:
            # Rows without a length write nothing, whatever their codes are.
            norms = _norms(found["W_dec"], norm, known)
            found["threshold"] = found["threshold"].clamp_min(0) / torch.where(norms > 0, norms, 1.0)
        _fold_normalisation(found, stored)
        return {
            **found,
            "W_enc": found["W_enc"].flatten(0, 1),
            "W_dec": found["W_dec"].transpose(0, 1).flatten(1),
            "b_dec": found["b_dec"].flatten(),
        }

    return Stored(config, path, weights, tensors)


def _names_of_parts(origin: Provenance) -> list[str]:
    """Return the hooks, those of a second model with its name, as fsae names the sites of two models; [] if unknown."""
    hooks, models = origin.hook_names or [], origin.model_names
    if models is None:
        return hooks
    # A hook that comes again is the second model's. Both models may have one name, and differ in their weights.
    return [
        f"{hook}_of_{Path(model).name}" if hook in hooks[:number] else hook
        for number, (hook, model) in enumerate(zip(hooks, models, strict=True))
    ]


def _equal(scores: Tensor) -> bool:
    """Return whether positive scores are equal up to the rounding of weights."""
    return bool(scores.min() > 0) and bool(scores.max() - scores.min() <= _ROUNDING * scores.max())


def _norms(rows: Tensor, kind: CodeNormalization, known: Mapping[str, Any]) -> Tensor:
    """Return the (d_sae,) factors of codes before the threshold, of the decoder's rows (sites, d_sae, d_site)."""
    joint, total = rows.norm(dim=(0, 2)), rows.norm(dim=2).sum(0)
    if kind is CodeNormalization.SAE:
        return joint
    if kind is CodeNormalization.CROSSCODER:
        return total
    if kind is CodeNormalization.NONE:
        return torch.ones_like(total)
    assert kind is CodeNormalization.MIXED
    share = {key: float(known.get(f"code_normalization_alpha_{key}", default)) for key, default in _MIXED.items()}
    return share["sae"] * joint + share["cc"] * total


def _fold_normalisation(found: dict[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Put each site's mean and scale into the weights, if there are any."""
    mean, std = stored.get(_MEAN), stored.get(_STD)
    # Files without a normalisation may have NaN here.
    if mean is None or std is None or not (mean.isfinite().all() and std.isfinite().all()):
        return
    mean, variance = mean.float(), std.float().square().sum(-1)
    target = stored.get(_TARGET, torch.ones(()))
    scale = stored.get(_SCALE, target / (variance + _EPSILON).sqrt()).float()[:, None]
    found["b_enc"] = found["b_enc"] - torch.einsum("sd,sdf->f", mean * scale, found["W_enc"])
    found["W_enc"] = found["W_enc"] * scale[:, :, None]
    found["W_dec"] = found["W_dec"] / (scale + _EPSILON)[:, :, None]
    found["b_dec"] = found["b_dec"] / (scale + _EPSILON) + mean


CROSSCODER_LEARNING = Release(
    "crosscoder_learning",
    f"{_CONFIG} and {_FILE}",
    lambda path: (path / _CONFIG).is_file() and (path / _FILE).is_file(),
    read_crosscoder_learning,
)

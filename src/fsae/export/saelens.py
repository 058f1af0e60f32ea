"""SAELens' format of autoencoders: a folder with `cfg.json` and `sae_weights.safetensors`."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.settings import count_in
from fsae.export.between import saelens_form
from fsae.export.config_files import read_json
from fsae.export.provenance import Provenance
from fsae.export.stored import Stored
from fsae.export.tensor_files import plain, read_safetensors
from fsae.files import replacing, share_as_folder

log = logging.getLogger(__name__)

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
SPARSITY = "sparsity.safetensors"
# The factor of the activations, next to a training checkpoint.
SCALER = "activation_scaler.json"

# The version whose layout is written. A reader takes a file that names no version, or one below 6, for the older
# layout and drops its metadata.
FORMAT_VERSION = "6.54.12"

# SAELens adds this before the logarithm, so that a latent that never fired has a finite entry.
LEAST_DENSITY = 1e-10


def save_saelens(
    autoencoder: Autoencoder,
    folder: Path,
    provenance: Provenance,
    density: Float[Tensor, " d_sae"] | None = None,
) -> None:
    """Write an autoencoder for raw activations (see `fold`) so that `sae_lens.SAE.load_from_disk` opens it.

    What SAELens opens has the same codes and reconstruction there: batch_topk is a `jumprelu` with its one threshold
    for each latent, as SAELens saves its own; abs_topk is `abstopk`, which sae_lens 6.54 knows; PCA is an abs_topk
    whose latents are all on. What SAELens has no architecture for is written alike under a name that it refuses, with
    a warning; `load_saelens` opens it.
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
    form = saelens_form(autoencoder)
    if not form.known:
        log.warning(
            "SAELens has no architecture %s: %s is in its layout, but only fsae opens it (fsae.load, task=eval)",
            form.architecture,
            folder,
        )
    heads_together = (provenance.hook_name or "").endswith("hook_z") and provenance.hook_head_index is None
    config = {
        "architecture": form.architecture,
        "d_in": autoencoder.d_in,
        "d_sae": autoencoder.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": autoencoder.centre is not None,
        "normalize_activations": "none",
        # SAELens reads attn_z as (..., head, d_head), and concatenates the heads as fsae does only with this setting.
        "reshape_activations": "hook_z" if heads_together else "none",
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
            save_file(plain(form.tensors), unfinished / WEIGHTS)
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
    save_file(plain({"sparsity": torch.log10(density + LEAST_DENSITY)}), path)


def read_saelens(folder: Path) -> Stored:
    """Return the dictionary in a folder in SAELens' format, written by fsae or by any version of sae_lens.

    Raises:
        ValueError: the folder or one of its files is missing or damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one that holds {CONFIG} and {WEIGHTS}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; an autoencoder in SAELens' format is a {CONFIG} and a {WEIGHTS}")
    path, weights = folder / CONFIG, folder / WEIGHTS
    config = read_json(path)
    if (folder / SCALER).is_file():
        # A training checkpoint.
        config["norm_scaling_factor"] = read_json(folder / SCALER).get("scaling_factor")

    def tensors() -> dict[str, Tensor]:
        for key in ("d_in", "d_sae"):
            try:
                count_in(config, key)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        return read_safetensors(weights)

    return Stored(config, path, weights, tensors)


def load_saelens(folder: Path) -> Autoencoder:
    """Return the autoencoder in a folder in SAELens' format; see `Stored.autoencoder`.

    Both fsae's jumprelu and its batch_topk are written as `jumprelu`, which is read as jumprelu.

    Raises:
        ValueError: as `read_saelens` and `Stored.autoencoder`.
    """
    return read_saelens(folder).autoencoder()


def read_provenance(folder: Path) -> Provenance:
    """Return the provenance in the cfg.json of a folder in SAELens' format.

    Raises:
        ValueError: as `read_saelens` and `Stored.provenance`.
    """
    return read_saelens(folder).provenance()


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

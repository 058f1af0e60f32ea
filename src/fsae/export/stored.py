"""A dictionary as it is stored: in the words of SAELens' format, into which every other layout is translated."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.choices import CHOICES
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.normalised import InputNorm, Normalised
from fsae.autoencoders.settings import AutoencoderSettings, count_in
from fsae.export.between import split_name
from fsae.export.provenance import Provenance, provenance_of
from fsae.plugins import with_outside

# The types that stored weights may have.
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Weights of autoencoders of raw activations are far smaller; products of greater numbers overflow float32.
_LARGEST_WEIGHT = 1e12

# The normalisations that multiply all activations by one factor, and the key of the factor.
_FACTORS = {
    "expected_average_only_in": "norm_scaling_factor",
    "constant_scalar_rescale": "activation_normalization_factor",
}

# SAELens' architectures in training whose codes, after training, are those of a jumprelu with one threshold.
_BATCH_ARCHITECTURES = ("batchtopk", "matryoshka_batchtopk")


@dataclass(frozen=True, eq=False)
class Stored:
    """A dictionary as a folder holds it.

    Attributes:
        config: the words of SAELens' cfg.json; `d_in` and `d_sae` may be missing, and follow from the tensors then.
        described: the file or folder that says so, for messages.
        weights: the file of the tensors, for messages.
        tensors: reads the tensors: `W_enc` (d_in, d_sae), `W_dec` (d_sae, d_out) and others by SAELens' names.
    """

    config: dict[str, Any]
    described: Path
    weights: Path
    tensors: Callable[[], dict[str, Tensor]]

    def autoencoder(self) -> Autoencoder:
        """Return the autoencoder, in evaluation mode, for raw activations; attn_z with its heads concatenated.

        Weights are read as float32. Factors that the format keeps apart are folded into the weights, which is exact: a
        factor of the activations, a factor per latent, and a choice by pre-activation times decoder norm
        (`rescale_acts_by_decoder_norm`), which becomes unit rows.

        Raises:
            ValueError: a file is damaged, a tensor is missing, superfluous or of the wrong shape, the architecture is
                unknown, or the config asks for something that fsae does not support.
        """
        (config, between), said = split_name(self.config), self.described
        # A training checkpoint of SAELens.
        of_batch = config.get("architecture") in _BATCH_ARCHITECTURES
        if of_batch:
            config["architecture"] = "jumprelu"
        architecture, kind = self._architecture(config)
        factor, norm = self._normalisation(config)
        if between is not None and (norm is not None or factor != 1):
            # SAELens does not say whether the targets are normalised, too.
            raise ValueError(
                f"{said}: normalize_activations is {config['normalize_activations']!r}, which is not supported for a "
                "dictionary that writes another site than it reads, or several"
            )
        self._refuse_unhonoured(config)
        if between is None:
            self._refuse_two_sites(config)
        tensors = self.tensors()
        if of_batch and "topk_threshold" in tensors:
            threshold = tensors.pop("topk_threshold")
            tensors["threshold"] = threshold.expand(len(tensors["b_enc"])) if "b_enc" in tensors else threshold
        per_latent = self._factor_per_latent(tensors)
        d_in, d_sae = self._size(config, "d_in", tensors, "W_enc"), self._size(config, "d_sae", tensors, "W_dec")
        try:
            settings = kind.from_saelens(architecture, config, d_sae)
            if between is None:
                ends = Ends.of(d_in)
            else:
                ends = between.ends(d_in, self._size(dict(self.config), "d_out", tensors, "b_dec"), d_sae)
        except ValueError as error:
            raise ValueError(f"{said}: {error}") from None
        weights = self._checked(tensors, settings.saelens_shapes(ends))
        if config.get("rescale_acts_by_decoder_norm"):
            fold_decoder_norms(weights)
        if per_latent is not None:
            weights["W_dec"] = weights["W_dec"] * per_latent.float()[:, None]
        if factor != 1 and "W_enc" in weights:
            weights["W_enc"] = weights["W_enc"] * factor
            weights["W_dec"], weights["b_dec"] = weights["W_dec"] / factor, weights["b_dec"] / factor
        autoencoder = settings.build(ends, torch.Generator()).eval()
        try:
            autoencoder.load_saelens(weights)
        except ValueError as error:
            raise ValueError(f"{self.weights}: {error}") from None
        if factor != 1 and "W_enc" not in weights:
            autoencoder.change_unit(factor, factor)
        return autoencoder if norm is None else Normalised(autoencoder, norm).eval()

    def provenance(self) -> Provenance:
        """Return the provenance.

        Raises:
            ValueError: the config contradicts itself, or names training vectors that fsae does not support.
        """
        return provenance_of(self.config, self.described)

    def _architecture(self, config: dict[str, Any]) -> tuple[str, type[AutoencoderSettings]]:
        """Return SAELens' name of the architecture and the settings class that reads it.

        Files from before sae_lens 6 may name an activation function instead.
        """
        path = self.described
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

    def _normalisation(self, config: dict[str, Any]) -> tuple[float, InputNorm | None]:
        """Return the factor by which all activations are multiplied, and the normalisation of each single one."""
        path, name = self.described, config.get("normalize_activations") or "none"
        # Before 2024 it was true or false.
        name = "expected_average_only_in" if name is True else name
        if name == "none":
            return 1.0, None
        if name in InputNorm.__members__:
            return 1.0, InputNorm[name]
        if name not in _FACTORS:
            raise ValueError(
                f"{path}: normalize_activations is {name!r}, which is not known; known are none, "
                f"{', '.join([*InputNorm.__members__, *_FACTORS])}"
            )
        key = _FACTORS[name]
        factor = config.get(key)
        if factor is None:
            raise ValueError(
                f"{path}: normalize_activations is {name!r}, but the factor is not in the file; add it as {key!r} "
                "(SAELens' list of releases has it), or fold it in sae_lens (fold_activation_norm_scaling_factor) and "
                "save again"
            )
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise ValueError(f"{path}: {key} is {factor!r}; it must be a positive number")
        return float(factor), None

    def _refuse_unhonoured(self, config: dict[str, Any]) -> None:
        path = self.described
        reshaping = config.get("reshape_activations", "none")
        if reshaping not in ("none", "hook_z"):
            raise ValueError(f"{path}: reshape_activations is {reshaping!r}; only 'none' and 'hook_z' are known")
        for key in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
            if not isinstance(config.get(key, False), bool):
                raise ValueError(f"{path}: {key} is {config[key]!r}; it must be true or false")
        dtype = config.get("dtype") or "float32"
        if not isinstance(dtype, str) or dtype.removeprefix("torch.") not in DTYPES:
            raise ValueError(f"{path}: dtype is {dtype!r}; known are {', '.join(DTYPES)}")

    def _refuse_two_sites(self, config: dict[str, Any]) -> None:
        """Raise ValueError if an architecture of one site has a target of another width, or at another site."""
        d_in, d_out = config.get("d_in"), config.get("d_out")
        if d_out not in (None, d_in):
            said = f"d_out is {d_out!r}, but d_in is {d_in!r}"
        elif self.provenance().writes_elsewhere:
            said = "it writes another site than it reads"
        else:
            return
        name = config.get("architecture", "standard")
        raise ValueError(
            f"{self.described}: {said}, and the architecture {name!r} is that of one site; that of a transcoder is "
            f"{'transcoder' if name == 'standard' else f'{name}_transcoder'!r}"
        )

    def _factor_per_latent(self, tensors: dict[str, Tensor]) -> Tensor | None:
        """Remove the factors that SAELens before version 6 fine-tuned from the tensors, and return them."""
        names = [name for name in ("scaling_factor", "finetuning_scaling_factor") if name in tensors]
        # Many files have factors that were never trained.
        for name in names:
            if (tensors[name] == 1).all():
                del tensors[name]
            elif self.config.get("finetuning_scaling_factor"):
                tensor = tensors.pop(name)
                if "b_enc" in tensors and tensor.shape != tensors["b_enc"].shape:
                    raise ValueError(
                        f"{self.weights}: {name} is {tuple(tensor.shape)}; it must have one entry per latent"
                    )
                return tensor
        return None

    def _size(self, config: dict[str, Any], key: str, tensors: dict[str, Tensor], name: str) -> int:
        if key not in config and name in tensors and tensors[name].dim() > 0:
            return len(tensors[name])
        try:
            return count_in(config, key)
        except ValueError as error:
            raise ValueError(f"{self.described}: {error}") from None

    def _checked(self, tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        path = self.weights
        for name, tensor in tensors.items():
            if tensor.dtype not in DTYPES.values():
                raise ValueError(
                    f"{path}: {name} is of {str(tensor.dtype).removeprefix('torch.')}, which weights cannot be; they "
                    f"are read in {', '.join(DTYPES)}"
                )
        for name, shape in shapes.items():
            if name not in tensors:
                raise ValueError(f"{path} has no {name}; it holds {', '.join(sorted(tensors))}")
            if tensors[name].shape != shape:
                raise ValueError(
                    f"{path}: {name} is {tuple(tensors[name].shape)}, by {self.described.name} it should be {shape}"
                )
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


def fold_decoder_norms(weights: dict[str, Tensor], biases: Sequence[str] = ("b_enc",)) -> None:
    """Give the decoder's rows norm 1 and multiply the codes by their norms, in place; reconstructions stay.

    Args:
        weights: by SAELens' names.
        biases: the names of what is added to pre-activations, or compared with them.
    """
    norms = weights["W_dec"].norm(dim=1)
    for name in ("W_enc", *biases):
        weights[name] = weights[name] * norms
    # A row of zeros stays one, whatever it is divided by.
    weights["W_dec"] = weights["W_dec"] / torch.where(norms > 0, norms, 1.0)[:, None]

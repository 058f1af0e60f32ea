"""Autoencoders of samples that are normalised one by one, as SAELens' `layer_norm` and `constant_norm_rescale`."""

from dataclasses import replace
from enum import Enum
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Factor
from fsae.autoencoders.record import Encoding, ForwardRecord, SAELensForm
from fsae.autoencoders.settings import AutoencoderSettings
from fsae.sparse.codes import Codes

# SAELens adds this to the standard deviation by which it divides, but not to the one by which it multiplies.
_EPSILON = 1e-5


class InputNorm(Enum):
    """The normalisations of a single sample, by SAELens' names.

    `layer_norm` subtracts the mean over the sample's entries and divides by their standard deviation (with d_in - 1 in
    the denominator). `constant_norm_rescale` gives the sample the norm sqrt(d_in).
    """

    layer_norm = "layer_norm"
    constant_norm_rescale = "constant_norm_rescale"


class Normalised(Autoencoder):
    """An autoencoder of normalised samples, with the normalisation before and its inverse after it.

    The codes are those of the normalised sample. The reconstruction is scale * (codes @ W_dec + b_dec) + shift, where
    scale and shift are the sample's own; so a sample's codes alone do not determine its reconstruction.

    Args:
        inner: the autoencoder of the normalised samples; its weights are this autoencoder's.
        norm: the normalisation.
    """

    def __init__(self, inner: Autoencoder, norm: InputNorm):
        super().__init__(inner.ends, inner.d_sae)
        self.inner, self.norm = inner, norm

    def __getattr__(self, name: str) -> Any:
        # Python looks here only for names that are no plain attributes.
        return getattr(self.inner, name) if name in ("W_enc", "W_dec", "b_dec") else super().__getattr__(name)

    @property
    def settings_type(self) -> type[AutoencoderSettings]:
        return self.inner.settings_type

    @property
    def centre(self) -> Float[Tensor, " d_in"] | None:
        return self.inner.centre

    @property
    def deciding(self) -> slice:
        return self.inner.deciding

    @property
    def code_weights(self) -> Float[Tensor, " d_sae"] | None:
        return self.inner.code_weights

    def encode(self, x: Float[Tensor, "batch d_in"], sparse: bool = False) -> Encoding:
        return self.inner.encode(self._normalised(x), sparse)

    def forward(
        self, x: Float[Tensor, "batch d_in"], sparse: bool = False, targets: Float[Tensor, "batch d_out"] | None = None
    ) -> ForwardRecord:
        shift, scale = self._statistics(x)
        record = self.inner(self._normalised(x), sparse)
        return replace(record, inputs=x, targets=targets, reconstruction=record.reconstruction * scale + shift)

    def decode(self, codes: Codes) -> Float[Tensor, "batch d_out"]:
        """Raise ValueError: the samples of the codes would be needed."""
        self.check_decodes_alone()
        raise AssertionError("never reached")

    def check_decodes_alone(self) -> None:
        raise ValueError(
            f"this dictionary normalises each sample ({self.norm.value}), so a sample's codes alone do not determine "
            "its reconstruction, as they must here; choose a dictionary without such a normalisation"
        )

    def sample_scale(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch 1"]:
        return self._statistics(x)[1]

    def _normalised(self, x: Tensor) -> Tensor:
        shift, scale = self._statistics(x)
        return (x - shift) / (scale + _EPSILON if self.norm is InputNorm.layer_norm else scale)

    def _statistics(self, x: Tensor) -> tuple[Tensor | float, Tensor]:
        """Return what is subtracted from each sample, and the factor that undoes the division of the rest."""
        if self.norm is InputNorm.layer_norm:
            shift = x.mean(-1, keepdim=True)
            return shift, (x - shift).std(-1, keepdim=True)
        return 0.0, x.norm(dim=-1, keepdim=True) / self.d_in**0.5

    def change_unit(self, scale: Factor, target_scale: Factor) -> None:
        """Change nothing: a sample in another unit has the same codes, and its reconstruction has its own unit."""

    def to_saelens(self) -> SAELensForm:
        form = self.inner.to_saelens()
        return replace(form, config={**form.config, "normalize_activations": self.norm.value})

    def load_saelens(self, tensors: dict[str, Tensor]) -> None:
        self.inner.load_saelens(tensors)

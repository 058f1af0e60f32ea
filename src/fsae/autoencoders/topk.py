"""TopK and AbsTopK autoencoders (Gao et al. 2024, arXiv 2406.04093; arXiv 2510.00404)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fsae.autoencoders.base import AffineMap, Autoencoder, AutoencoderSettings, Encoding
from fsae.autoencoders.codes import Codes, Pattern, linear_codes


@dataclass(frozen=True, kw_only=True)
class KSettings(AutoencoderSettings):
    """What the architectures with a fixed number of active latents share.

    Attributes:
        k: active latents a sample.
    """

    k: int = 64

    fixed_k: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"arch.k is {self.k}; it must be at least 1")

    def check_width(self, d_in: int) -> None:
        if self.k > self.width(d_in):
            raise ValueError(
                f"arch.k is {self.k}, more than the {self.width(d_in)} latents there are; "
                "lower arch.k or raise arch.d_sae (or arch.expansion)"
            )

    def first_density(self, d_in: int) -> float:
        return self.k / self.width(d_in)


@dataclass(frozen=True, kw_only=True)
class TopKSettings(KSettings):
    """The k largest pre-activations of each sample, rectified."""

    def build(self, d_in: int, generator: torch.Generator) -> "TopK":
        return TopK(d_in, self, generator)


@dataclass(frozen=True, kw_only=True)
class AbsTopKSettings(KSettings):
    """The k pre-activations of largest magnitude of each sample, with their sign."""

    def build(self, d_in: int, generator: torch.Generator) -> "AbsTopK":
        return AbsTopK(d_in, self, generator)


class TopK(Autoencoder):
    """codes = relu(pre) at the k largest entries of pre = (x - b_dec) W_enc + b_enc, else 0."""

    settings: KSettings

    def __init__(self, d_in: int, settings: KSettings, generator: torch.Generator):
        super().__init__(d_in, settings, generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        inputs = self.encoder_input(x)
        pre_activations = AffineMap(inputs, self.W_enc, self.b_enc)
        if sparse:
            raw = linear_codes(inputs, self.W_enc, self._select)
            codes = raw.with_values(self.activation(raw.values + raw.columns(self.b_enc)))
        else:
            pre = linear_codes(inputs, self.W_enc).values + self.b_enc
            chosen = torch.zeros_like(pre, dtype=torch.bool).scatter_(1, self._indices(pre.detach()), True)
            codes = Codes(self.activation(pre) * chosen)
        return Encoding(codes, pre_activations, {"rank": self.score})

    def score(self, pre: Tensor) -> Tensor:
        """What the k latents are chosen by."""
        return pre

    def activation(self, pre: Tensor) -> Tensor:
        """What becomes of a chosen pre-activation."""
        return torch.relu(pre)

    def _indices(self, pre: Tensor) -> Tensor:
        return self.score(pre).topk(self.settings.k, dim=1, sorted=False).indices

    def _select(self, products: Tensor) -> Pattern:
        return Pattern.of_indices(self._indices(products + self.b_enc.to(products.dtype)), self.d_sae)


class AbsTopK(TopK):
    """codes = pre at the k entries of largest |pre|, else 0."""

    def score(self, pre: Tensor) -> Tensor:
        return pre.abs()

    def activation(self, pre: Tensor) -> Tensor:
        return pre

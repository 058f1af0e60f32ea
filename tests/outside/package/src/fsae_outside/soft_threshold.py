"""An autoencoder with soft thresholds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import AffineMap, Encoding, SAELensForm
from fsae.autoencoders.settings import RectifiedSettings
from fsae.ranges import between
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern


@dataclass(frozen=True, kw_only=True)
class SoftThresholdSettings(RectifiedSettings):
    """Settings of the autoencoder with soft thresholds.

    Attributes:
        first_threshold: all thresholds at the start, in units of the scaled activations.
    """

    first_threshold: float = field(default=0.5, metadata=between(above=0, most=10**6))

    saelens_names: ClassVar[tuple[str, ...]] = ("soft_threshold",)
    saelens_vectors: ClassVar[tuple[str, ...]] = ("b_enc", "threshold")

    def build(self, ends: Ends | int, generator: torch.Generator) -> "SoftThreshold":
        return SoftThreshold(ends, self, generator)

    @classmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        return super().from_saelens(architecture, config, d_sae)


class SoftThreshold(SparseAutoencoder):
    """An autoencoder with codes = relu(pre - threshold), and one threshold per latent that is learned."""

    latents_compete = False

    def __init__(self, ends: Ends | int, settings: SoftThresholdSettings, generator: torch.Generator):
        super().__init__(ends, settings, generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.threshold = nn.Parameter(torch.full((self.d_sae,), settings.first_threshold))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        raw = self.encoder_product(x)
        codes = torch.relu(raw.values + self.b_enc - self.threshold)
        if sparse:
            pattern = Pattern.of_mask(codes.detach() != 0)
            held = Codes(codes[pattern.rows, pattern.columns], pattern)
        else:
            held = Codes(codes)
        return Encoding(held, AffineMap(x, self.W_enc, self.b_enc, centre=self.centre))

    def switch_on_above(self, latents: slice, products: Tensor) -> None:
        self.b_enc[latents] = self.threshold[latents] - products

    def multiply_pre_activations(self, unit: Tensor) -> None:
        super().multiply_pre_activations(unit)
        self.threshold.mul_(unit)

    def to_saelens(self) -> SAELensForm:
        return SAELensForm("soft_threshold", self.saelens_tensors("b_enc", "threshold"), known=False)

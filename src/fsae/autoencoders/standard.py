"""The ReLU autoencoder (Cunningham et al. 2023, arXiv 2309.08600; Bricken et al. 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import AffineMap, Encoding, SAELensForm
from fsae.autoencoders.settings import RectifiedSettings
from fsae.sparse.pattern import Pattern


@dataclass(frozen=True, kw_only=True)
class StandardSettings(RectifiedSettings):
    """Settings of the ReLU autoencoder."""

    saelens_names: ClassVar[tuple[str, ...]] = ("standard",)

    def build(self, ends: Ends | int, generator: torch.Generator) -> "Standard":
        return Standard(ends, self, generator)


class Standard(SparseAutoencoder):
    """An autoencoder with codes = relu((x - b_dec) W_enc + b_enc)."""

    latents_compete = False

    def __init__(self, ends: Ends | int, settings: StandardSettings, generator: torch.Generator):
        super().__init__(ends, settings, generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        raw = self.encoder_product(x, self._select if sparse else None)
        codes = raw.with_values(torch.relu_(raw.values + raw.columns(self.b_enc)))
        return Encoding(codes, AffineMap(x, self.W_enc, self.b_enc, centre=self.centre))

    def _select(self, products: Tensor) -> Pattern:
        return Pattern.above(products, -self.b_enc)

    def to_saelens(self) -> SAELensForm:
        return SAELensForm("standard", self.saelens_tensors("b_enc"))

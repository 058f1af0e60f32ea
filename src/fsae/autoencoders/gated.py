"""The gated autoencoder (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

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
class GatedSettings(RectifiedSettings):
    """Settings of the gated autoencoder."""

    provides: ClassVar[frozenset[str]] = frozenset({"pre_activations", "gate"})
    saelens_names: ClassVar[tuple[str, ...]] = ("gated",)
    saelens_vectors: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag", "r_mag")

    def build(self, ends: Ends | int, generator: torch.Generator) -> "Gated":
        return Gated(ends, self, generator)


class Gated(SparseAutoencoder):
    """An autoencoder whose gate decides which latents are on, and whose magnitude path decides their codes.

    codes = 1[gate > 0] relu(magnitude), with (paper, eqs. 3-5)

    gate = (x - b_dec) W_enc + b_gate,  magnitude = (x - b_dec) W_enc exp(r_mag) + b_mag.

    The step passes no gradient: the gate learns through its rectified value alone, by the sparsity term and by the
    auxiliary reconstruction, and W_enc by the magnitude path as well.
    """

    latents_compete = False

    def __init__(self, ends: Ends | int, settings: GatedSettings, generator: torch.Generator):
        super().__init__(ends, settings, generator)
        self.b_gate = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        raw = self.encoder_product(x, self._select if sparse else None)
        gate = raw.with_values(torch.relu(raw.values + raw.columns(self.b_gate)))
        magnitude = torch.relu(raw.values * raw.columns(self.r_mag.exp()) + raw.columns(self.b_mag))
        codes = raw.with_values(magnitude * (gate.values > 0))
        pre_activations = AffineMap(x, self.W_enc, self.b_mag, self.r_mag.exp(), self.centre)
        return Encoding(codes, pre_activations, {"gate": gate})

    @torch.no_grad()
    def raise_pre_activations(self, by: Tensor) -> None:
        self.b_gate.add_(by)
        self.b_mag.add_(by * self.r_mag.exp())

    @torch.no_grad()
    def switch_on_above(self, latents: slice, products: Tensor) -> None:
        self.b_gate[latents] = -products

    def multiply_pre_activations(self, unit: Tensor) -> None:
        # r_mag needs no change: exp(r_mag) multiplies the product with W_enc, which has the new unit already.
        self.b_gate.mul_(unit)
        self.b_mag.mul_(unit)

    def _select(self, products: Tensor) -> Pattern:
        return Pattern.above(products, -self.b_gate)

    def to_saelens(self) -> SAELensForm:
        return SAELensForm("gated", self.saelens_tensors("b_gate", "b_mag", "r_mag"))

"""The gated autoencoder (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.record import AffineMap, Encoding
from fsae.autoencoders.settings import RectifiedSettings
from fsae.sparse.pattern import Pattern


@dataclass(frozen=True, kw_only=True)
class GatedSettings(RectifiedSettings):
    """A gate decides which latents are on, a magnitude path sharing its directions decides how much."""

    provides: ClassVar[frozenset[str]] = frozenset({"gate"})

    def build(self, d_in: int, generator: torch.Generator) -> "Gated":
        return Gated(d_in, self, generator)


class Gated(SparseAutoencoder):
    """codes = 1[gate > 0] relu(magnitude), with (paper, eqs. 3-5)

    gate = (x - b_dec) W_enc + b_gate,  magnitude = (x - b_dec) W_enc exp(r_mag) + b_mag.

    The step passes no gradient: the gate learns through its rectified value alone, by the sparsity term and by the
    auxiliary reconstruction, and W_enc by the magnitude path as well.
    """

    def __init__(self, d_in: int, settings: GatedSettings, generator: torch.Generator):
        super().__init__(d_in, settings, generator)
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

    def _raise_pre_activations(self, by: Tensor) -> None:
        self.b_gate.add_(by)
        self.b_mag.add_(by * self.r_mag.exp())

    def _select(self, products: Tensor) -> Pattern:
        return Pattern.above(products, -self.b_gate)

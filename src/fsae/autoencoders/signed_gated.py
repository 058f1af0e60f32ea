"""The gated autoencoder with a two-sided gate and signed codes (SA-GSAE, arXiv 2605.28149)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import RESAMPLED_SHARE, SparseAutoencoder
from fsae.autoencoders.initialisation import levels
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import AffineMap, Encoding, SAELensForm
from fsae.autoencoders.settings import RectifiedSettings
from fsae.ranges import between
from fsae.sparse.pattern import Pattern, lowered


@dataclass(frozen=True, kw_only=True)
class SignedGatedSettings(RectifiedSettings):
    """Settings of the gated autoencoder with signed codes; half of `init_density` is of either sign.

    Attributes:
        init_threshold: both thresholds at the start, in units of the scaled activations, unless `init_density` sets
            them. At zero every latent would be on, with one sign or the other.
    """

    init_threshold: float = field(default=0.1, metadata=between(above=0, most=10**6))

    provides: ClassVar[frozenset[str]] = frozenset({"pre_activations", "gate"})
    saelens_names: ClassVar[tuple[str, ...]] = ("signed_gated",)
    saelens_vectors: ClassVar[tuple[str, ...]] = ("b_gate", "b_gate_negative", "b_mag", "r_mag")

    @property
    def bias_density(self) -> float | None:
        return None if self.init_density is None else self.init_density / 2

    def build(self, ends: Ends | int, generator: torch.Generator) -> "SignedGated":
        return SignedGated(ends, self, generator)


class SignedGated(SparseAutoencoder):
    """An autoencoder in which a latent is on for large products of either sign, so that one latent does the work of two
    with opposite directions.

    codes = 1[p > -b_gate or -p > -b_gate_negative] (p exp(r_mag) + b_mag), with p = (x - b_dec) W_enc

    and the gate that the sparsity term and the auxiliary reconstruction train,

    gate = relu(p + b_gate) - relu(-p + b_gate_negative).

    Both signs share r_mag, the authors' default. Their exact gate is not published; this form is derived from its
    description. As in the gated autoencoder, the step passes no gradient.
    """

    latents_compete = False

    def __init__(self, ends: Ends | int, settings: SignedGatedSettings, generator: torch.Generator):
        super().__init__(ends, settings, generator)
        self.b_gate = nn.Parameter(torch.full((self.d_sae,), -settings.init_threshold))
        self.b_gate_negative = nn.Parameter(torch.full((self.d_sae,), -settings.init_threshold))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        raw = self.encoder_product(x, self._select if sparse else None)
        above = torch.relu(raw.values + raw.columns(self.b_gate))
        below = torch.relu(raw.columns(self.b_gate_negative) - raw.values)
        magnitude = raw.values * raw.columns(self.r_mag.exp()) + raw.columns(self.b_mag)
        codes = raw.with_values(magnitude * ((above > 0) | (below > 0)))
        pre_activations = AffineMap(x, self.W_enc, self.b_mag, self.r_mag.exp(), self.centre)
        return Encoding(codes, pre_activations, {"gate": raw.with_values(above - below)})

    @torch.no_grad()
    def raise_pre_activations(self, by: Tensor) -> None:
        self.b_gate.add_(by)
        self.b_gate_negative.sub_(by)
        self.b_mag.add_(by * self.r_mag.exp())

    @torch.no_grad()
    def switch_on(self, inputs: Tensor, density: float) -> None:
        """See `SparseAutoencoder.switch_on`; a share of `density` is on with either sign.

        Inputs need not be centred, so that the products of one sign can be far larger.
        """
        for sign, bias in ((1, self.b_gate), (-1, self.b_gate_negative)):
            for latents, products in levels(inputs, sign * self.W_enc, density):
                bias[latents] = -products

    def multiply_pre_activations(self, unit: Tensor) -> None:
        for bias in (self.b_gate, self.b_gate_negative, self.b_mag):
            bias.mul_(unit)

    @torch.no_grad()
    def resample(self, latents: Tensor, alive: Tensor, read: Tensor, written: Tensor) -> None:
        """See `SparseAutoencoder.resample`; biases of the gate become a fifth of their means, as the columns do.

        With zeros the latents would be on for every sample, with one sign or the other.
        """
        known = alive if alive.any() else torch.ones_like(alive)
        means = [bias[known].mean() for bias in (self.b_gate, self.b_gate_negative)]
        super().resample(latents, alive, read, written)
        self.b_gate[latents], self.b_gate_negative[latents] = (RESAMPLED_SHARE * mean for mean in means)

    def _select(self, products: Tensor) -> Pattern:
        above, below = (
            lowered(-bias, products.dtype).to(products.dtype) for bias in (self.b_gate, self.b_gate_negative)
        )
        return Pattern.of_mask((products > above) | (-products > below))

    def to_saelens(self) -> SAELensForm:
        vectors = self.saelens_tensors("b_gate", "b_gate_negative", "b_mag", "r_mag")
        return SAELensForm("signed_gated", vectors, known=False)

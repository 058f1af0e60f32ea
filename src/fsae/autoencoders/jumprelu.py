"""The JumpReLU autoencoder (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import AffineMap, Encoding, SAELensForm
from fsae.autoencoders.settings import RectifiedSettings
from fsae.autoencoders.straight_through import jump_relu, step
from fsae.ranges import between
from fsae.sparse.pattern import Pattern

_LEAST_LOG_THRESHOLD = math.log(1e-6)


@dataclass(frozen=True, kw_only=True)
class JumpReLUSettings(RectifiedSettings):
    """Settings of the JumpReLU autoencoder.

    Attributes:
        init_threshold: all thresholds at the start, in units of the scaled activations.
        bandwidth: width of the kernel that estimates the gradient of the thresholds, in the same units.
        ste_to_input: let this estimate reach pre-activations, too, as in Anthropic's January 2025 update. A term
            that counts active latents then trains encoder weights next to thresholds.
    """

    init_threshold: float = field(default=0.1, metadata=between(above=0, most=10**6))
    bandwidth: float = field(default=0.1, metadata=between(above=0, most=10**6))
    ste_to_input: bool = False

    provides: ClassVar[frozenset[str]] = frozenset({"pre_activations", "active"})
    saelens_names: ClassVar[tuple[str, ...]] = ("jumprelu",)
    saelens_vectors: ClassVar[tuple[str, ...]] = ("b_enc", "threshold")

    def build(self, ends: Ends | int, generator: torch.Generator) -> "JumpReLU":
        return JumpReLU(ends, self, generator)


class JumpReLU(SparseAutoencoder):
    """An autoencoder with a learned threshold per latent: codes = pre 1[pre > threshold].

    pre = (x - b_dec) W_enc + b_enc.

    The log of the threshold is learned, so it stays positive; it stays in float32 whatever the other weights are,
    because a step of a small learning rate would be lost in bfloat16.
    """

    settings: JumpReLUSettings
    latents_compete = False
    float32_names: ClassVar[tuple[str, ...]] = ("log_threshold",)

    def __init__(self, ends: Ends | int, settings: JumpReLUSettings, generator: torch.Generator):
        super().__init__(ends, settings, generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.log_threshold = nn.Parameter(torch.full((self.d_sae,), math.log(settings.init_threshold)))

    @property
    def threshold(self) -> Tensor:
        """The thresholds, (d_sae,)."""
        return self.log_threshold.exp()

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        raw = self.encoder_product(x, self._select if sparse else None)
        pre = raw.values + raw.columns(self.b_enc)
        threshold = raw.columns(self.threshold)
        if raw.pattern is None:
            threshold = threshold.expand_as(pre)
        bandwidth, to_input = self.settings.bandwidth, self.settings.ste_to_input
        codes = raw.with_values(jump_relu(pre, threshold, bandwidth, to_input))
        active = raw.with_values(step(pre, threshold, bandwidth, to_input))
        return Encoding(codes, AffineMap(x, self.W_enc, self.b_enc, centre=self.centre), {"active": active})

    def _select(self, products: Tensor) -> Pattern:
        # Below the threshold but within the kernel the code is zero and its threshold still has a gradient.
        lowest = self.threshold - self.settings.bandwidth / 2 - self.b_enc
        return Pattern.above(products, lowest, self.threshold + self.settings.bandwidth + self.b_enc.abs())

    @torch.no_grad()
    def switch_on_above(self, latents: slice, products: Tensor) -> None:
        super().switch_on_above(latents, products)
        self.b_enc[latents] += self.threshold[latents]

    def multiply_pre_activations(self, unit: Tensor) -> None:
        super().multiply_pre_activations(unit)
        self.log_threshold.add_(unit.log())

    @torch.no_grad()
    def resample(self, latents: Tensor, alive: Tensor, read: Tensor, written: Tensor) -> None:
        """See `SparseAutoencoder.resample`; thresholds become the mean of the live latents' thresholds."""
        log_threshold = self.log_threshold[alive].mean() if alive.any() else self.log_threshold.mean()
        super().resample(latents, alive, read, written)
        self.log_threshold[latents] = log_threshold

    @torch.no_grad()
    def copy_latents(self, other: Autoencoder, latents: Tensor) -> None:
        super().copy_latents(other, latents)
        # The logarithm of a threshold of 0, which a file may have, cannot be trained.
        self.log_threshold.clamp_min_(_LEAST_LOG_THRESHOLD)

    def to_saelens(self) -> SAELensForm:
        return SAELensForm("jumprelu", self.saelens_tensors("b_enc") | {"threshold": self.threshold})

    @torch.no_grad()
    def load_saelens(self, tensors: dict[str, Tensor]) -> None:
        thresholds = tensors["threshold"]
        if below := int((thresholds < 0).sum()):
            raise ValueError(
                f"{below} of {thresholds.numel()} thresholds are negative, and a latent's threshold is not; set them "
                "to 0 if every positive pre-activation is to count"
            )
        others = {name: tensor for name, tensor in tensors.items() if name != "threshold"}
        super().load_saelens(others | {"log_threshold": thresholds.log()})

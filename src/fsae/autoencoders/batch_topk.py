"""The BatchTopK autoencoder (Bussmann et al. 2024, arXiv 2412.06410)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fsae.autoencoders.base import AffineMap, Autoencoder, Encoding
from fsae.autoencoders.codes import Pattern, linear_codes, lowered
from fsae.autoencoders.topk import KSettings


@dataclass(frozen=True, kw_only=True)
class BatchTopKSettings(KSettings):
    """On average k active latents a sample: in training the k x batch largest of the whole batch, afterwards those
    above a threshold learned meanwhile.

    Attributes:
        threshold_decay: weight of the past in the moving average of the smallest active code.
    """

    threshold_decay: float = 0.99

    fixed_k: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.threshold_decay < 1:
            raise ValueError(f"arch.threshold_decay is {self.threshold_decay}; it must be in [0, 1)")

    def build(self, d_in: int, generator: torch.Generator) -> "BatchTopK":
        return BatchTopK(d_in, self, generator)


class BatchTopK(Autoencoder):
    """codes = relu(pre) at the k x batch largest entries of the batch (training) or above `threshold` (inference)."""

    settings: BatchTopKSettings
    threshold: Tensor
    float32_names: ClassVar[tuple[str, ...]] = ("threshold",)

    def __init__(self, d_in: int, settings: BatchTopKSettings, generator: torch.Generator):
        super().__init__(d_in, settings, generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        # One number: the smallest code that a batch lets through, averaged over batches. Negative
        # means that no batch was seen.
        self.register_buffer("threshold", torch.tensor(-1.0))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        inputs = self.encoder_input(x)
        raw = linear_codes(inputs, self.W_enc, self._select if sparse else None)
        pre = raw.values + raw.columns(self.b_enc)
        codes = raw.with_values(torch.relu(pre) * self._mask(pre.detach(), x.shape[0]))
        return Encoding(codes, AffineMap(inputs, self.W_enc, self.b_enc))

    def _mask(self, pre: Tensor, batch: int) -> Tensor:
        """Which pre-activations are let through: of the whole batch, or of those that could be."""
        if not self.training:
            return pre > self.threshold.clamp_min(0)
        smallest = _smallest_of_largest(pre.flatten(), self.settings.k * batch).clamp_min(0)
        self._remember(smallest)
        # At or above the smallest one kept: ties beyond k x batch are let in rather than chosen between.
        return (pre >= smallest) & (pre > 0)

    def _select(self, products: Tensor) -> Pattern:
        if not self.training:
            threshold = self.threshold.clamp_min(0)
            return Pattern.above(products, threshold - self.b_enc, threshold + self.b_enc.abs())
        total = self.settings.k * products.shape[0]
        pre = products + self.b_enc.to(products.dtype)
        likely = pre > 0.8 * self.threshold
        if self.threshold <= 0 or likely.sum() < total:
            likely = pre >= lowered(_smallest_of_largest(pre.flatten(), total), pre.dtype)
        # Selecting among all of them would cost a CPU twice the encoder's product; nearly all are far below.
        rows, columns = likely.nonzero(as_tuple=True)
        values = pre[rows, columns]
        # A little more than is kept: which those are is decided by exact values.
        kept = values >= lowered(_smallest_of_largest(values, total), values.dtype)
        return Pattern.of_places(rows[kept], columns[kept], (pre.shape[0], pre.shape[1]))

    @torch.no_grad()
    def _remember(self, smallest: Tensor) -> None:
        decay = self.settings.threshold_decay
        smallest = smallest.to(self.threshold.dtype)
        averaged = decay * self.threshold + (1 - decay) * smallest
        self.threshold.copy_(torch.where(self.threshold < 0, smallest, averaged))


def _smallest_of_largest(entries: Tensor, total: int) -> Tensor:
    return entries.topk(total, sorted=False).values.min()

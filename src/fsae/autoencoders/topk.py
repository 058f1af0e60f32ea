"""The TopK autoencoder (Gao et al. 2024, arXiv 2406.04093)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.record import AffineMap, Encoding
from fsae.autoencoders.settings import SparseAutoencoderSettings
from fsae.ranges import COUNT
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern

# Entries of a group, of which only the maximum is looked at first.
_GROUP = 16


# Whole numbers as long as those that scores are in.
_WHOLE = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@dataclass(frozen=True, kw_only=True)
class KSettings(SparseAutoencoderSettings):
    """What the architectures with a fixed number of active latents share.

    Attributes:
        k: active latents a sample.
    """

    k: int = field(default=64, metadata=COUNT)

    fixed_k: ClassVar[bool] = True

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


class TopK(SparseAutoencoder):
    """codes = relu(pre) at the k largest entries of pre = (x - b_dec) W_enc + b_enc, else 0."""

    settings: KSettings

    def __init__(self, d_in: int, settings: KSettings, generator: torch.Generator):
        super().__init__(d_in, settings, generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        pre_activations = AffineMap(x, self.W_enc, self.b_enc, centre=self.centre)
        if sparse:
            raw = self.encoder_product(x, self._select)
            codes = raw.with_values(self.activation(raw.values + raw.columns(self.b_enc)))
        else:
            pre = self.encoder_product(x).values + self.b_enc
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
        return _largest(self.score(pre), self.settings.k)

    def _select(self, products: Tensor) -> Pattern:
        return Pattern.of_indices(self._indices(products + self.b_enc.to(products.dtype)), self.d_sae)


def _largest(scores: Tensor, k: int) -> Tensor:
    """(batch, k) indices of each row's k largest, in no order.

    They lie in those k groups of entries whose maxima are the largest, and looking through all entries for their
    groups' maxima is all that has to be done with all entries.
    """
    batch, width = scores.shape
    groups = width // _GROUP
    if width % _GROUP or groups < 2 * k:
        return _order_keys(scores).topk(k, dim=1, sorted=False).indices
    # A group's entries are far apart, so that maxima are taken over whole rows at a time.
    grouped = scores.view(batch, _GROUP, groups)
    best = _order_keys(grouped.amax(1)).topk(k, dim=1, sorted=False).indices
    candidates = grouped.gather(2, best.unsqueeze(1).expand(-1, _GROUP, -1)).flatten(1)
    chosen = _order_keys(candidates).topk(k, dim=1, sorted=False).indices
    return chosen // k * groups + best.gather(1, chosen % k)


def _order_keys(scores: Tensor) -> Tensor:
    """Whole numbers in the same order, NaN above all, among which a CPU finds the largest in two thirds of the time."""
    if scores.is_cuda:
        return scores
    whole = _WHOLE[scores.dtype]
    kind = torch.iinfo(whole)
    bits = scores.view(whole)
    # The bits of positive numbers are in order as they are, those of negative ones in the other.
    keys = bits ^ (bits >> kind.bits - 1 & kind.max)
    # A NaN with a sign, as inf - inf has on some machines, would be below all: so many of them are wrapped round.
    return keys - (round(1 / torch.finfo(scores.dtype).eps) - 1)

"""The TopK autoencoder (Gao et al. 2024, arXiv 2406.04093)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import AffineMap, DecidingMap, Encoding, SAELensForm
from fsae.autoencoders.settings import SparseAutoencoderSettings, count_in
from fsae.ranges import COUNT, SOME_SHARE
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern

# Entries of a group; the search for the largest entries starts with the maxima of groups.
_GROUP = 16

# The whole numbers of as many bits as each type of scores.
_WHOLE = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@dataclass(frozen=True, kw_only=True)
class KSettings(SparseAutoencoderSettings):
    """Settings of the architectures with a fixed number of active latents.

    Attributes:
        k: active latents per sample.
        k_start: active latents per sample in the first step of training, from which their number goes to `k` in a
            straight line; null for `k` from the start.
        k_until: share of training after which it is `k`.
    """

    k: int = field(default=64, metadata=COUNT)
    k_start: int | None = field(default=None, metadata=COUNT)
    k_until: float = field(default=0.1, metadata=SOME_SHARE)

    fixed_k: ClassVar[bool] = True
    has_k: ClassVar[bool] = True

    def check_width(self, d_in: int) -> None:
        for name, k in (("k", self.k), ("k_start", self.k_start or self.k)):
            if k > self.width(d_in):
                raise ValueError(
                    f"arch.{name} is {k}, more than the {self.width(d_in)} latents of the autoencoder; lower "
                    f"arch.{name}, or raise arch.d_sae (or arch.expansion)"
                )

    def first_density(self, d_in: int) -> float:
        return self.k_at(0.0) / self.width(d_in)

    def density(self, d_in: int) -> float:
        return self.k / self.width(d_in)

    def k_at(self, progress: float) -> int:
        """Return the active latents per sample after a share `progress` (0 to 1) of the training."""
        if self.k_start is None:
            return self.k
        return round(self.k_start + (self.k - self.k_start) * min(1.0, progress / self.k_until))

    def k_of(self, autoencoder: SparseAutoencoder) -> int:
        """Return the active latents per sample of an autoencoder now: `k`, unless it is in training."""
        return self.k_at(autoencoder.progress) if autoencoder.training else self.k

    @classmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        # Before sae_lens 6 k stood among the arguments of the activation function.
        of_function = (config.get("activation_fn_kwargs") or {}).get("k")
        k = config.get("k", of_function)
        if of_function not in (None, k):
            raise ValueError(f"k is {k!r}, but in activation_fn_kwargs {of_function!r}")
        if (k := count_in({"k": k}, "k")) > d_sae:
            raise ValueError(f"k is {k}, more than the {d_sae} latents of the autoencoder")
        return replace(super().from_saelens(architecture, config, d_sae), k=k)


@dataclass(frozen=True, kw_only=True)
class TopKSettings(KSettings):
    """Settings of the TopK autoencoder: the k largest pre-activations of each sample are on."""

    saelens_names: ClassVar[tuple[str, ...]] = ("topk",)

    def build(self, ends: Ends | int, generator: torch.Generator) -> "TopK":
        return TopK(ends, self, generator)


class TopK(SparseAutoencoder):
    """An autoencoder with codes = relu(pre) at the k largest entries of pre = (x - b_dec) W_enc + b_enc, else 0."""

    settings: KSettings
    latents_compete = True
    code_attributes = ("encode", "score", "activation", "indices")

    def __init__(self, ends: Ends | int, settings: KSettings, generator: torch.Generator):
        super().__init__(ends, settings, generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        pre_activations = AffineMap(x, self.W_enc, self.b_enc, centre=self.centre)
        if sparse:
            raw = self.encoder_product(x, self._select)
            codes = raw.with_values(self.activation(raw.values + raw.columns(self.b_enc)))
        else:
            pre = self.encoder_product(x).values + self.b_enc
            chosen = torch.zeros_like(pre, dtype=torch.bool).scatter_(1, self.indices(pre.detach()), True)
            codes = Codes(self.activation(pre) * chosen)
        return Encoding(codes, pre_activations, {"selection_score": self.score})

    def score(self, pre: Tensor) -> Tensor:
        """Return the scores whose k largest select the latents."""
        return pre

    def activation(self, pre: Tensor) -> Tensor:
        """Turn selected pre-activations into codes."""
        return torch.relu(pre)

    def indices(self, pre: Tensor) -> Tensor:
        """Return the (batch, k) latents that pre-activations select, in no order."""
        return largest(self.score(pre), self.settings.k_of(self))

    def _select(self, products: Tensor) -> Pattern:
        return Pattern.of_indices(self.indices(products + self.b_enc.to(products.dtype)), self.d_sae)

    def deciding_map(self) -> DecidingMap | None:
        return self.affine_scores()

    @torch.no_grad()
    def affine_scores(self) -> DecidingMap:
        """Return the pre-activations as the functions whose k largest values decide."""
        columns, biases = self.W_enc.T.double(), self.b_enc.double()
        if self.centre is not None:
            biases = biases - columns @ self.b_dec.double()
        return DecidingMap(columns, biases, self.settings.k, rectified=True)

    def to_saelens(self) -> SAELensForm:
        config = {"k": self.settings.k, "rescale_acts_by_decoder_norm": False}
        return SAELensForm("topk", self.saelens_tensors("b_enc"), config)


def largest(scores: Tensor, k: int) -> Tensor:
    """Return the (batch, k) indices of the k largest entries of each row, in no order.

    They lie in the k groups of entries with the largest maxima. Only the search for these maxima reads all entries.
    """
    batch, width = scores.shape
    groups = width // _GROUP
    if width % _GROUP or groups < 2 * k:
        return _order_keys(scores).topk(k, dim=1, sorted=False).indices
    # The entries of a group lie far apart, so that each operation takes maxima over whole rows.
    grouped = scores.view(batch, _GROUP, groups)
    best = _order_keys(grouped.amax(1)).topk(k, dim=1, sorted=False).indices
    candidates = grouped.gather(2, best.unsqueeze(1).expand(-1, _GROUP, -1)).flatten(1)
    chosen = _order_keys(candidates).topk(k, dim=1, sorted=False).indices
    return chosen // k * groups + best.gather(1, chosen % k)


def _order_keys(scores: Tensor) -> Tensor:
    """Return whole numbers in the same order, with NaN above all; a CPU finds the largest in two thirds of the time."""
    if scores.is_cuda:
        return scores
    whole = _WHOLE[scores.dtype]
    kind = torch.iinfo(whole)
    bits = scores.view(whole)
    # The bits of positive numbers have the order of the numbers, the bits of negative numbers the reverse.
    keys = bits ^ (bits >> kind.bits - 1 & kind.max)
    # A NaN with a sign, the result of inf - inf on some machines, would be below all. The subtraction wraps round, by
    # as many numbers as there are such NaNs.
    return keys - (round(1 / torch.finfo(scores.dtype).eps) - 1)

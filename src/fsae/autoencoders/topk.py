"""The TopK autoencoder (Gao et al. 2024, arXiv 2406.04093)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import AffineMap, DecidingMap, Encoding, SAELensForm
from fsae.autoencoders.selection import Competing, CompetitionScope, KSettings, SelectionSettings
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
class TopKSettings(SelectionSettings):
    """Settings of the TopK autoencoder: the k largest pre-activations of each sample are on."""

    saelens_names: ClassVar[tuple[str, ...]] = ("topk",)

    def build(self, ends: Ends | int, generator: torch.Generator) -> "TopK":
        return TopK(ends, self, generator)


class TopK(Competing):
    """An autoencoder with codes = relu(pre) at the k largest scores of pre = (x - b_dec) W_enc + b_enc, else 0."""

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
        return Encoding(codes, pre_activations, {"selection_score": self.scores})

    def activation(self, pre: Tensor) -> Tensor:
        """Turn selected pre-activations into codes."""
        return torch.relu(pre)

    def indices(self, pre: Tensor) -> Tensor:
        """Return the (batch, k) latents that pre-activations select, in no order."""
        scores, groups = self.scores(pre), self.competition.groups
        return torch.cat([largest(scores[:, own], places) + own.start for own, places in groups], dim=1)

    def _select(self, products: Tensor) -> Pattern:
        return Pattern.of_indices(self.indices(products + self.b_enc.to(products.dtype)), self.d_sae)

    @torch.no_grad()
    def deciding_map(self) -> DecidingMap | None:
        competition = self.competition
        # The regions of latents that compete in groups are no cells of one power diagram.
        if len(competition.groups) > 1:
            return None
        columns, biases = self.W_enc.T.double(), self.b_enc.double()
        if self.centre is not None:
            biases = biases - columns @ self.b_dec.double()
        if competition.weights is not None:
            weights = competition.weights.double()
            columns, biases = columns * weights[:, None], biases * weights
        return DecidingMap(columns, biases, self.settings.k, rectified=True)

    def to_saelens(self) -> SAELensForm:
        config = {"k": self.settings.k, "rescale_acts_by_decoder_norm": False}
        if len(self.competition.groups) > 1:
            config["scope"] = CompetitionScope.block.value
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

"""The BatchTopK autoencoder (Bussmann et al. 2024, arXiv 2412.06410)."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import AffineMap, Encoding, ForwardRecord, SAELensForm
from fsae.autoencoders.selection import Competing, Competition, SelectionSettings
from fsae.ranges import DECAY
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern, lowered


@dataclass(frozen=True, kw_only=True)
class BatchTopKSettings(SelectionSettings):
    """Settings of the BatchTopK autoencoder: k latents per sample are on, on average over the batch.

    Attributes:
        threshold_decay: weight of the past in the moving average of the smallest score that is let through.
    """

    threshold_decay: float = field(default=0.99, metadata=DECAY)

    fixed_k: ClassVar[bool] = False

    def build(self, ends: Ends | int, generator: torch.Generator) -> "BatchTopK":
        return BatchTopK(ends, self, generator)


class BatchTopK(Competing):
    """An autoencoder with codes = relu(pre) at the k x batch largest scores of the batch in training, and at those
    above `threshold` in evaluation mode. SAELens' format holds it as jumprelu, with a threshold for each latent.

    Attributes:
        threshold: the smallest score that a batch lets through, as a moving average over the batches of training;
            negative before the first batch. If latents compete within blocks, (blocks,), one of each.
    """

    settings: BatchTopKSettings
    latents_compete = True
    threshold: Tensor
    float32_names: ClassVar[tuple[str, ...]] = ("threshold",)

    def __init__(self, ends: Ends | int, settings: BatchTopKSettings, generator: torch.Generator):
        super().__init__(ends, settings, generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        groups = len(self.competition.groups)
        self.register_buffer("threshold", torch.full(() if groups == 1 else (groups,), -1.0))
        # The smallest score that each selection of the last batch let through. The search in the next batch starts a
        # little below it.
        self._smallest: dict[int, Tensor] = {}

    def forward(self, x: Tensor, sparse: bool = False, targets: Tensor | None = None) -> ForwardRecord:
        record = super().forward(x, sparse, targets)
        # Not in `encode`, which may be called twice for a batch.
        if self.training:
            self._average()
        return record

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        return self.select(x, sparse)

    def select(self, x: Tensor, sparse: bool, number: int = 0) -> Encoding:
        """Return the codes that one selection makes of x; an encoder may make several, each with its threshold."""
        raw = self._sparse_product(x, number) if sparse else self.encoder_product(x)
        pre = raw.values + raw.columns(self.b_enc)
        codes = raw.with_values(torch.relu(pre) * self._mask(raw.with_values(pre.detach()), number))
        # What an encoder makes of its input before this map is given: terms of pre-activations train the map alone, and
        # AuxK cannot pull on living latents.
        pre_activations = AffineMap(x.detach(), self.W_enc, self.b_enc, centre=self.centre)
        return Encoding(codes, pre_activations, {"selection_score": self.scores})

    def threshold_of(self, number: int) -> Float[Tensor, "*groups"]:
        """Return the threshold of a selection; the one that makes the codes has the number 0."""
        assert number == 0
        return self.threshold

    def _mask(self, pre: Codes, number: int) -> Tensor:
        """Return which pre-activations are let through."""
        competition, latents = self.competition, None if pre.pattern is None else pre.pattern.columns
        scores = competition.scores(pre.values, latents)
        if not self.training:
            return scores > competition.limits(self.threshold_of(number).clamp_min(0), latents)
        smallest = competition.smallest(scores, latents, pre.shape[0]).clamp_min(0)
        self._smallest[number] = smallest
        # All ties with the smallest score are let through, even beyond k x batch.
        return (scores >= competition.limits(smallest, latents)) & (scores > 0)

    def _sparse_product(self, x: Tensor, number: int) -> Codes:
        competition = self.competition
        if not self.training:
            threshold = competition.per_latent(self.threshold_of(number).clamp_min(0))
            if competition.weights is not None:
                threshold = threshold / competition.weights.clamp_min(torch.finfo(threshold.dtype).tiny)
            return self.encoder_product(x, partial(self._above, threshold))
        # To select among all entries would cost a CPU twice the encoder's product. Nearly all scores are far below the
        # smallest one, which changes little from batch to batch.
        floors = [None, torch.zeros_like(self.threshold)]
        last = self._smallest.get(number)
        for floor in floors if last is None else [0.9 * last, *floors]:
            search = _Search(self.b_enc, competition, floor)
            raw = self.encoder_product(x, search.select, search.narrow)
            if search.complete:
                return raw
        raise AssertionError("nothing is kept below zero")

    def _above(self, threshold: Tensor, products: Tensor) -> Pattern:
        return Pattern.above(products, threshold - self.b_enc, threshold + self.b_enc.abs())

    def multiply_pre_activations(self, unit: Tensor) -> None:
        super().multiply_pre_activations(unit)
        self.threshold.mul_(unit[0])

    def to_saelens(self) -> SAELensForm:
        threshold = self.competition.per_latent(self.threshold.clamp_min(0)).expand(self.d_sae)
        tensors = self.saelens_tensors("b_enc") | {"threshold": threshold}
        return SAELensForm("jumprelu", tensors, trained_as="batchtopk")

    @torch.no_grad()
    def _average(self) -> None:
        decay = self.settings.threshold_decay
        for number, found in self._smallest.items():
            threshold = self.threshold_of(number)
            smallest = found.to(threshold.dtype)
            averaged = decay * threshold + (1 - decay) * smallest
            threshold.copy_(torch.where(threshold < 0, smallest, averaged))


class _Search:
    """A search for the k x batch largest scores among those above a floor.

    Args:
        b_enc: (d_sae,) the encoder's bias, which turns products into pre-activations.
        competition: the latents that compete.
        floor: the smallest score of each group of latents that is looked at; None takes it from each group of samples
            itself.

    Attributes:
        complete: whether no entry below a floor can be among the largest.
    """

    def __init__(self, b_enc: Tensor, competition: Competition, floor: Tensor | None):
        self._b_enc, self._competition, self._floor = b_enc, competition, floor
        self._floors: list[Tensor] = []
        self.complete = False

    def select(self, products: Tensor) -> Pattern:
        """Return the entries of a group of samples that are above the floor."""
        scores = self._competition.scores(products + self._b_enc.to(products.dtype))
        floor = self._floor
        if floor is None:
            floor = self._competition.smallest(scores, None, 4 * len(scores)).clamp_min(0)
        floor = floor.to(scores.dtype)
        self._floors.append(floor)
        return Pattern.of_mask(scores > self._competition.limits(floor, None))

    def narrow(self, pattern: Pattern, values: Tensor) -> Tensor:
        """Return which entries, computed exactly, may be among the largest of the batch: a few more than those."""
        latents, weights = pattern.columns, self._competition.weights
        scores = self._competition.scores(values + self._b_enc.to(values.dtype)[latents], latents)
        smallest = self._competition.smallest(scores, latents, pattern.batch)
        # The products' rounding errors are multiplied by the weights.
        size = None if weights is None else torch.maximum(smallest.abs(), weights.amax())
        smallest = lowered(smallest, values.dtype, size)
        floor = torch.stack(self._floors).amax(0)
        self.complete = bool(((smallest > floor) | (floor == 0)).all())
        return scores >= self._competition.limits(smallest, latents)

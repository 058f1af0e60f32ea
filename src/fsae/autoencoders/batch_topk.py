"""The BatchTopK autoencoder (Bussmann et al. 2024, arXiv 2412.06410)."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.record import AffineMap, Encoding, ForwardRecord, SAELensForm
from fsae.autoencoders.topk import KSettings
from fsae.ranges import DECAY
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern, lowered


@dataclass(frozen=True, kw_only=True)
class BatchTopKSettings(KSettings):
    """Settings of the BatchTopK autoencoder: k latents per sample are on, on average over the batch.

    Attributes:
        threshold_decay: weight of the past in the moving average of the smallest active code.
    """

    threshold_decay: float = field(default=0.99, metadata=DECAY)

    fixed_k: ClassVar[bool] = False

    def build(self, ends: Ends | int, generator: torch.Generator) -> "BatchTopK":
        return BatchTopK(ends, self, generator)


class BatchTopK(SparseAutoencoder):
    """An autoencoder with codes = relu(pre) at the k x batch largest entries of the batch in training, and at the
    entries above `threshold` in evaluation mode. SAELens' format holds it as jumprelu, with one threshold.

    Attributes:
        threshold: the smallest code that a batch lets through, as a moving average over the batches of training;
            negative before the first batch.
    """

    settings: BatchTopKSettings
    latents_compete = True
    threshold: Tensor
    float32_names: ClassVar[tuple[str, ...]] = ("threshold",)

    def __init__(self, ends: Ends | int, settings: BatchTopKSettings, generator: torch.Generator):
        super().__init__(ends, settings, generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.register_buffer("threshold", torch.tensor(-1.0))
        # The smallest code that each selection of the last batch let through. The search in the next batch starts a
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
        codes = raw.with_values(torch.relu(pre) * self._mask(pre.detach(), x.shape[0], number))
        # What an encoder makes of its input before this map is given: terms of pre-activations train the map alone, and
        # AuxK cannot pull on living latents.
        return Encoding(codes, AffineMap(x.detach(), self.W_enc, self.b_enc, centre=self.centre))

    def threshold_of(self, number: int) -> Float[Tensor, ""]:
        """Return the threshold of a selection; the one that makes the codes has the number 0."""
        assert number == 0
        return self.threshold

    def _mask(self, pre: Tensor, batch: int, number: int) -> Tensor:
        """Return which pre-activations are let through."""
        if not self.training:
            return pre > self.threshold_of(number).clamp_min(0)
        smallest = _smallest_of_largest(pre.flatten(), self.settings.k_of(self) * batch).clamp_min(0)
        self._smallest[number] = smallest
        # All ties with the smallest code are let through, even beyond k x batch.
        return (pre >= smallest) & (pre > 0)

    def _sparse_product(self, x: Tensor, number: int) -> Codes:
        if not self.training:
            return self.encoder_product(x, partial(self._above, self.threshold_of(number).clamp_min(0)))
        # To select among all entries would cost a CPU twice the encoder's product. Nearly all entries are far below the
        # smallest code, which changes little from batch to batch.
        floors = [None, self.threshold.new_zeros(())]
        last = self._smallest.get(number)
        for floor in floors if last is None else [0.9 * last, *floors]:
            search = _Search(self.b_enc, self.settings.k_of(self), floor)
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
        threshold = self.threshold.clamp_min(0).expand(self.d_sae)
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
    """A search for the k x batch largest pre-activations among those above a floor.

    Args:
        b_enc: (d_sae,) the encoder's bias, which turns products into pre-activations.
        k: number of latents per sample, on average.
        floor: the smallest pre-activation that is looked at; None takes it from each group of samples itself.

    Attributes:
        complete: whether no entry below a floor can be among the largest.
    """

    def __init__(self, b_enc: Tensor, k: int, floor: Tensor | None):
        self._b_enc, self._k, self._floor = b_enc, k, floor
        self._floors: list[Tensor] = []
        self.complete = False

    def select(self, products: Tensor) -> Pattern:
        """Return the entries of a group of samples that are above the floor."""
        pre = products + self._b_enc.to(products.dtype)
        floor = self._floor
        if floor is None:
            floor = _smallest_of_largest(pre.flatten(), min(4 * self._k * len(pre), pre.numel())).clamp_min(0)
        floor = floor.to(pre.dtype)
        self._floors.append(floor)
        return Pattern.of_mask(pre > floor)

    def narrow(self, pattern: Pattern, values: Tensor) -> Tensor:
        """Return which entries, computed exactly, may be among the largest of the batch: a few more than those."""
        pre = values + self._b_enc.to(values.dtype)[pattern.columns]
        smallest = lowered(_smallest_of_largest(pre, self._k * pattern.batch), values.dtype)
        floor = torch.stack(self._floors).max()
        self.complete = bool((smallest > floor) | (floor == 0))
        return pre >= smallest


def _smallest_of_largest(entries: Tensor, total: int) -> Tensor:
    """Return the smallest of the `total` largest entries; 0 if there are fewer."""
    if entries.numel() < total:
        return entries.new_zeros(())
    if entries.is_cuda:
        # On a GPU, kthvalue would leave a whole batch to a single block of threads.
        return entries.topk(total, sorted=False).values.min()
    return entries.kthvalue(entries.numel() - total + 1).values

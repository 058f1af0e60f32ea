"""Terms of samples that follow one another in a text."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fsae.autoencoders.record import ForwardRecord
from fsae.losses.matryoshka import WIDTH, counted_widths
from fsae.losses.term import LossTerm, Moment, TermValue
from fsae.ranges import WEIGHT


@dataclass(frozen=True, kw_only=True)
class TemporalContrast(LossTerm):
    """Cross-entropy of finding each sample's partner by the codes of the first latents (T-SAE, arXiv 2511.05541).

    The partner of a token is the one before it in its document. With codes z of the samples and z' of their partners,
    -log softmax_c(z_b . z'_c) at c = b is averaged over the samples b, and the same of partners over samples; the value
    is the mean of both. Samples without a partner are left out. The products have no temperature, as in the authors'
    code; their paper has cosines.

    Attributes:
        width: the latents that are compared, the first ones: below 1 a share, else their number.
    """

    weight: float = field(default=0.1, metadata=WEIGHT)
    width: float = field(default=0.2, metadata=WIDTH)

    needs_of_source: ClassVar[frozenset[str]] = frozenset({"partners"})
    reads_prefixes: ClassVar[bool] = True
    of_codes: ClassVar[bool] = True

    def check_width(self, name: str, d_sae: int) -> None:
        (count,) = counted_widths([self.width], d_sae)
        if not 1 <= count <= d_sae or (self.width >= 1 and count != self.width):
            raise ValueError(
                f"loss.{name}.width is {self.width:g}; it must be a share below 1, or a whole number, of the {d_sae} "
                "latents"
            )

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        assert record.partners is not None
        (width,) = counted_widths([self.width], len(record.W_dec))
        codes, partners = record.codes.first(width), record.partners.codes.first(width)
        # For each code one row of this table is read, so the product is as sparse as the codes are.
        products = codes.decode(partners.dense().T.contiguous())
        there = record.partners.there
        return TermValue((_mismatch(products, there) + _mismatch(products.T, there)) / 2)


def _mismatch(products: Float[Tensor, "batch batch"], there: Bool[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of rows whose diagonal entry is the right one, over rows and columns that count."""
    logits = products.masked_fill(~there, torch.finfo(products.dtype).min)
    entropies = logits.logsumexp(1) - products.diagonal()
    return (entropies * there).sum() / there.sum().clamp_min(1)

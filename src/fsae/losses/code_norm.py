"""The norm of a sample's codes, which should be that of the sample."""

from dataclasses import dataclass, field
from typing import ClassVar

from fsae.autoencoders.record import ForwardRecord
from fsae.losses.term import LossTerm, Moment, TermValue
from fsae.ranges import WEIGHT

# Below this squared norm there is no gradient, because that of a square root has no bound.
_SMALLEST = 1e-12


@dataclass(frozen=True, kw_only=True)
class CodeNorm(LossTerm):
    """(|f| - |x - b_dec|)^2 averaged over the batch, with |f|^2 = sum_i (f_i |W_dec_i|)^2 (AFA loss, arXiv 2503.24277).

    Directions that are nearly orthogonal reconstruct a vector of the norm of their codes. The authors' code does not
    centre x here, but it does in the choice of latents; both are the same only if b_dec is small. Here b_dec starts
    from the data. With codes of the norm of x one latent reaches the norm of x - b_dec, and no other one is chosen.
    Published weights, from 1/128 to 1/16, apply to an error that is averaged over dimensions. Times 768, their width,
    for an error that is summed over dimensions, they go from 6 to 48.
    """

    weight: float = field(default=24.0, metadata=WEIGHT)

    of_codes: ClassVar[bool] = True

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        codes = record.codes
        # Without weights the rows are unit vectors. Weights of rows of several parts may be sums of norms.
        unit = record.code_weights is None
        lengths = codes.values if unit else codes.values * codes.columns(record.W_dec.norm(dim=1))
        norms = codes.with_values(lengths.square()).row_sums().clamp_min(_SMALLEST).sqrt()
        wanted = (record.wanted - record.base.detach()).norm(dim=1)
        return TermValue((norms - wanted).square().mean())

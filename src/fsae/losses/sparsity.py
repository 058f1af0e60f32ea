"""Pressure toward few active latents."""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import torch

from fsae.autoencoders.record import ForwardRecord
from fsae.losses.term import LossTerm, Moment, TermValue
from fsae.ranges import POSITIVE
from fsae.sparse.codes import Codes


@dataclass(frozen=True, kw_only=True)
class L1(LossTerm):
    """sum_i f_i |W_dec_i| averaged over the batch; for gated, of the rectified gate (arXiv 2404.16014, eq. 8)."""

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        sizes = _sizes(record)
        return TermValue(sizes.values.sum() / sizes.shape[0])


@dataclass(frozen=True, kw_only=True)
class StepL0(LossTerm):
    """The number of active latents, with the straight-through gradient to thresholds (arXiv 2407.14435, eq. 9)."""

    needs: ClassVar[frozenset[str]] = frozenset({"active"})

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        assert record.active is not None
        return TermValue(record.active.values.sum() / record.active.shape[0])


class TargetForm(Enum):
    """The distance of l0 from its target.

    batch: (l0 / target - 1)^2 of the batch's mean l0 (arXiv 2407.14435, appendix F).
    sample: 2 / target times (l0 - target)^2 of each sample, averaged over the batch, so that the spread of l0 over
        samples counts, too: Gemma Scope 2, and `quadratic` in SAELens.
    """

    batch = "batch"
    sample = "sample"


@dataclass(frozen=True, kw_only=True)
class TargetL0(LossTerm):
    """The squared distance of l0 from a target, at which training settles.

    Attributes:
        target: wanted number of active latents per sample.
        form: of the mean l0, or of each sample's.
    """

    target: float = field(default=64.0, metadata=POSITIVE)
    form: TargetForm = TargetForm.batch

    needs: ClassVar[frozenset[str]] = frozenset({"active"})

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        assert record.active is not None
        l0 = record.active.values.sum() / record.active.shape[0]
        if self.form is TargetForm.batch:
            value = (l0 / self.target - 1).square()
        else:
            value = 2 / self.target * (record.active.row_sums() - self.target).square().mean()
        return TermValue(value, {"sparsity_l0": l0.detach()})


@dataclass(frozen=True, kw_only=True)
class TanhL0(LossTerm):
    """sum_i tanh(c f_i |W_dec_i|) averaged over the batch, a smooth count (Anthropic, January 2025 update); for
    gated, of the rectified gate.

    Attributes:
        scale: c; the larger, the closer to a count.
    """

    scale: float = field(default=4.0, metadata=POSITIVE)

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        sizes = _sizes(record)
        return TermValue(torch.tanh(self.scale * sizes.values).sum() / sizes.shape[0])


def _sizes(record: ForwardRecord) -> Codes:
    """f_i |W_dec_i|; for gated, of the rectified gate."""
    codes = (record.gate if record.gate is not None else record.codes).map(torch.abs)
    if record.code_weights is None:
        return codes
    return codes.with_values(codes.values * codes.columns(record.code_weights))

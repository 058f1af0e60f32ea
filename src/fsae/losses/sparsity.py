"""Pressure toward few active latents."""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from fsae.autoencoders.record import ForwardRecord
from fsae.losses.term import LossTerm, Moment, TermValue
from fsae.ranges import COUNT, INNER_SHARE, POSITIVE, between
from fsae.sparse.codes import Codes

# Below this size a power below 1 would have too steep a gradient.
_SMALLEST = 1e-3


@dataclass(frozen=True, kw_only=True)
class L1(LossTerm):
    """sum_i f_i |W_dec_i| averaged over the batch; for gated, of the rectified gate (arXiv 2404.16014, eq. 8)."""

    of_codes: ClassVar[bool] = True

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        sizes = _sizes(record)
        return TermValue(sizes.values.sum() / sizes.shape[0])


@dataclass(frozen=True, kw_only=True)
class StepL0(LossTerm):
    """The number of active latents, with the straight-through gradient to thresholds (arXiv 2407.14435, eq. 9)."""

    needs: ClassVar[frozenset[str]] = frozenset({"active"})
    of_codes: ClassVar[bool] = True

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
    of_codes: ClassVar[bool] = True

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        assert record.active is not None
        l0 = record.active.values.sum() / record.active.shape[0]
        if self.form is TargetForm.batch:
            value = (l0 / self.target - 1).square()
        else:
            value = 2 / self.target * (record.active.row_sums() - self.target).square().mean()
        return TermValue(value, {"sparsity_l0": l0.detach()})


@dataclass(frozen=True, kw_only=True)
class AnnealedLp(LossTerm):
    """sum_i s_i^p averaged over the batch, with sizes s_i = f_i |W_dec_i| and p that falls from 1 (P-anneal, arXiv
    2408.00113); for gated, of the rectified gate.

    p falls in equal steps. At each step the term is multiplied by the ratio of its old value to its new one, both
    averaged over the last batches before, so that the pressure stays the same. Sizes below 1e-3 count linearly, so that
    the gradient is finite.

    Attributes:
        end: the last p.
        begin: share of training after which p falls; each value then has an equal part of the rest.
        stages: number of values of p, 1 among them.
        recent: batches over which values are averaged.
        root: (sum_i s_i^p)^(1/p) instead of the sum.
    """

    end: float = field(default=0.2, metadata=between(above=0, most=1))
    begin: float = field(default=0.1, metadata=between(least=0, below=1, meaning="a share"))
    stages: int = field(default=10, metadata=between(least=2, most=10_000))
    recent: int = field(default=10, metadata=COUNT)
    root: bool = False

    of_codes: ClassVar[bool] = True

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        sizes, memory = _sizes(record), moment.memory
        stage = self._stage(moment.progress)
        value, p = self._norm(sizes, stage), self._p(stage)
        if stage != memory.setdefault("stage", stage):
            if stage == memory.get("coming"):
                before, after = memory["values"].mean(0)
            else:
                # Stages passed in which nothing was measured.
                before, after = self._norm(sizes, memory["stage"]).detach(), value.detach()
            memory["factor"] = memory["factor"] * torch.where(after > 0, before / after, 1.0)
            memory["stage"] = stage
            memory.pop("values", None)
        factor = memory.setdefault("factor", torch.ones_like(value.detach()))
        coming = max(stage + 1, self._stage((moment.step + 1) / moment.steps))
        if coming < self.stages:
            with torch.no_grad():
                both = torch.stack([value, self._norm(sizes, coming)]).unsqueeze(0)
            known = memory["values"] if memory.get("coming") == coming and "values" in memory else both[:0]
            memory["values"], memory["coming"] = torch.cat([known, both])[-self.recent :], coming
        return TermValue(factor * value, {"sparsity_p": factor.new_tensor(p)})

    def _stage(self, progress: float) -> int:
        """Return the number of the present value of p."""
        share = (progress - self.begin) / (1 - self.begin)
        return min(max(int(share * self.stages), 0), self.stages - 1)

    def _p(self, stage: int) -> float:
        return 1 - (1 - self.end) * stage / (self.stages - 1)

    def _norm(self, sizes: Codes, stage: int) -> Tensor:
        p = self._p(stage)
        powers = sizes.map(lambda s: torch.where(s >= _SMALLEST, s.clamp_min(_SMALLEST) ** p, s * _SMALLEST ** (p - 1)))
        return (powers.row_sums() ** (1 / p)).mean() if self.root else powers.values.sum() / sizes.shape[0]


@dataclass(frozen=True, kw_only=True)
class DenseLatents(LossTerm):
    """sum_i max(0, density_i / limit - 1) mean_b f_bi |W_dec_i|: an L1 norm of the latents that are too dense alone.

    The density is that of the batch, without gradient. Gemma Scope 2 has a penalty against dense latents whose formula
    is not published; this one is of fsae's own making.

    Attributes:
        limit: the density up to which a latent is not penalised.
    """

    limit: float = field(default=0.1, metadata=INNER_SHARE)

    of_codes: ClassVar[bool] = True

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        codes = record.codes.map(torch.abs)
        means = codes.column_sums() / codes.shape[0]
        if record.code_weights is not None:
            means = means * record.code_weights
        excess = (record.codes.firing_counts / (codes.shape[0] * self.limit) - 1).clamp_min(0)
        return TermValue(excess.to(means.dtype) @ means)


@dataclass(frozen=True, kw_only=True)
class TanhL0(LossTerm):
    """sum_i tanh(c f_i |W_dec_i|) averaged over the batch, a smooth count (Anthropic, January 2025 update); for
    gated, of the rectified gate.

    Attributes:
        scale: c; the larger, the closer to a count.
    """

    scale: float = field(default=4.0, metadata=POSITIVE)

    of_codes: ClassVar[bool] = True

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        sizes = _sizes(record)
        return TermValue(torch.tanh(self.scale * sizes.values).sum() / sizes.shape[0])


def _sizes(record: ForwardRecord) -> Codes:
    """f_i |W_dec_i|; for gated, of the rectified gate."""
    codes = (record.gate if record.gate is not None else record.codes).map(torch.abs)
    if record.code_weights is None:
        return codes
    return codes.with_values(codes.values * codes.columns(record.code_weights))

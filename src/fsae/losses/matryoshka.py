"""Matryoshka losses: the errors of reconstructions from the first latents alone (arXiv 2503.17547).

A level is a prefix of the latents. Its reconstruction is b_dec + sum_{i < width} f_i W_dec_i, from the codes of the one
selection among all latents. The last level is the whole width. Levels are sums over disjoint blocks of latents, so all
of them together cost about one more decoder product.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.record import ForwardRecord
from fsae.losses.auxiliary import AuxK, explained
from fsae.losses.term import LossTerm, Moment, TermValue
from fsae.ranges import COUNT, WEIGHT, between

# A share below 1 of the latents, or a number of latents.
WIDTH = between(above=0, most=2**28, meaning="a share of the latents or a number of latents")


class Reduction(Enum):
    """The sum over levels of their squared errors, which are summed over dimensions and averaged over the batch.

    sum: the sum, as in SAELens.
    mean: the mean over the levels, as in matryoshka-saes by Nabeshima. With weights 1 / levels, as in
        dictionary_learning.
    mean_with_b_dec: the mean over the levels and one more, which b_dec alone reconstructs (weight 1). As in
        matryoshka_sae by Bussmann, whose errors are means over dimensions, so that its numbers are these over d_in.
    """

    sum = "sum"
    mean = "mean"
    mean_with_b_dec = "mean_with_b_dec"


@dataclass(frozen=True, kw_only=True)
class Levels(LossTerm):
    """The squared errors of all levels.

    Attributes:
        reduction: the sum over the levels.
        detach: give the error of a level no gradient in the latents of narrower levels, so that each latent is trained
            by the first level that has it. b_dec is then trained by the first level.
    """

    reduction: Reduction = Reduction.sum
    detach: bool = False

    reads_prefixes: ClassVar[bool] = True

    @abstractmethod
    def inner_widths(self, d_sae: int, moment: Moment) -> list[int]:
        """Return the widths of the levels in increasing order, without the whole width."""

    def weigh(self, errors: Float[Tensor, " levels"]) -> Tensor:
        """Return each level's error with its weight."""
        return errors

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        errors = level_errors(record, self.inner_widths(len(record.W_dec), moment), self.detach)
        weighted = self.weigh(errors)
        value, levels = weighted.sum(), len(errors)
        if self.reduction is Reduction.mean_with_b_dec:
            value, levels = value + (record.wanted - record.base).square().sum(1).mean(), levels + 1
        if self.reduction is not Reduction.sum:
            value = value / levels
        # The number of levels is a setting, so each has a name of its own.
        return TermValue(value, {f"level_{number}": error for number, error in enumerate(errors.detach())})


@dataclass(frozen=True, kw_only=True)
class Matryoshka(Levels):
    """The squared errors of levels of fixed widths.

    Attributes:
        widths: the widths of the inner levels, in increasing order: below 1 a share of the latents, else their number.
            The whole width is one more level.
        level_weights: one weight per level, the whole width's last; null for 1 each.
    """

    widths: list[float] = field(default_factory=lambda: [1 / 32, 3 / 32, 7 / 32, 15 / 32], metadata=WIDTH)
    level_weights: list[float] | None = field(default=None, metadata=WEIGHT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level_weights is not None and len(self.level_weights) != len(self.widths) + 1:
            raise ValueError(
                f"loss.reconstruction.level_weights has {len(self.level_weights)} weights, but there are "
                f"{len(self.widths) + 1} levels, the whole width among them; give one weight per level"
            )

    def check_width(self, name: str, d_sae: int) -> None:
        check_widths(self.widths, name, d_sae)

    def inner_widths(self, d_sae: int, moment: Moment) -> list[int]:
        return counted_widths(self.widths, d_sae)

    def prefix_widths(self, d_sae: int) -> list[int]:
        return [*counted_widths(self.widths, d_sae), d_sae]

    def weigh(self, errors: Tensor) -> Tensor:
        # Python's numbers are arguments of the operation; a tensor would be copied to the device.
        if self.level_weights is None:
            return errors
        return torch.stack([weight * error for weight, error in zip(self.level_weights, errors, strict=True)])


@dataclass(frozen=True, kw_only=True)
class SampledMatryoshka(Levels):
    """The squared errors of levels whose widths are drawn for each batch, from a power law without replacement.

    The probability of a width of at most m is proportional to m^power. The law and its default are those of
    matryoshka-saes by Nabeshima.

    Attributes:
        levels: number of levels, the whole width among them.
        power: 1 for widths that are all equally probable; the smaller, the more narrow ones.
    """

    reduction: Reduction = Reduction.mean
    levels: int = field(default=10, metadata=COUNT)
    power: float = field(default=0.5, metadata=between(above=0, most=100))

    def check_width(self, name: str, d_sae: int) -> None:
        if self.levels > d_sae:
            raise ValueError(
                f"loss.{name}.levels is {self.levels}, more than the {d_sae} latents of the autoencoder; lower it, or "
                "raise arch.d_sae (or arch.expansion)"
            )

    def inner_widths(self, d_sae: int, moment: Moment) -> list[int]:
        if self.levels == 1:
            return []
        ends = torch.arange(d_sae, dtype=torch.float64) ** self.power
        drawn = torch.multinomial(ends.diff(), self.levels - 1, generator=moment.generator)
        return sorted((drawn + 1).tolist())


@dataclass(frozen=True, kw_only=True)
class LevelAuxK(AuxK):
    """The sum over levels of the error with which dead latents explain the level's residual.

    The dead latents of a level are those that no narrower level has. The rest is as in AuxK: the residual is detached,
    and each level counts in proportion to its dead latents, up to k. SAELens' `use_matryoshka_aux_loss`.

    Attributes:
        widths: of the inner levels, as in `Matryoshka`.
        k: dead latents per sample and level; null for half the input's width.
    """

    widths: list[float] = field(default_factory=list, metadata=WIDTH)

    reads_prefixes: ClassVar[bool] = True

    def check_width(self, name: str, d_sae: int) -> None:
        check_widths(self.widths, name, d_sae)

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        dead = moment.dead_latents
        if dead.numel() == 0:
            return TermValue(record.inputs.new_zeros(()))
        d_sae, k = len(record.W_dec), self.number(record)
        widths = [*counted_widths(self.widths, d_sae), d_sae]
        with torch.no_grad():
            residuals = record.wanted - (record.codes.decode_blocks(record.W_dec, widths).cumsum(0) + record.base)
        assert record.pre_activations is not None
        pre = record.pre_activations.at(dead)
        value = record.inputs.new_zeros(())
        for residual, (begin, end) in zip(residuals, pairwise([0, *widths]), strict=True):
            # The number of a level's dead latents would wait for the device; a mask does not.
            own = (dead >= begin) & (dead < end)
            most = min(k, dead.numel(), end - begin)
            error = explained(record, residual, dead, pre, most, own)
            value = value + error * (own.sum() / k).clamp_max(1.0)
        return TermValue(value)


def level_errors(record: ForwardRecord, inner_widths: Sequence[int], detach: bool) -> Float[Tensor, " levels"]:
    """Return the squared error of each level, the whole width's last."""
    whole = record.error.square().sum(1).mean().unsqueeze(0)
    if not inner_widths:
        return whole
    ends = [*inner_widths, len(record.W_dec)] if detach else inner_widths
    blocks = record.codes.decode_blocks(record.W_dec, ends)
    prefixes = blocks.cumsum(0) + record.base
    if detach:
        narrower = (prefixes - blocks)[1:].detach()
        prefixes = torch.cat([(blocks[0] + record.base).unsqueeze(0), blocks[1:] + narrower])
    errors = (record.wanted - prefixes).square().sum(2).mean(1)
    return errors if detach else torch.cat([errors, whole])


def counted_widths(widths: Sequence[float], d_sae: int) -> list[int]:
    """Return widths as numbers of latents; those below 1 are shares."""
    return [round(width * d_sae) if width < 1 else round(width) for width in widths]


def check_widths(widths: Sequence[float], name: str, d_sae: int) -> None:
    """Raise ValueError if these are no widths of inner levels of this number of latents."""
    for width in widths:
        if width >= 1 and width != round(width):
            raise ValueError(f"loss.{name}.widths has {width:g}; it must be a share below 1, or a whole number")
    if any(later <= earlier for earlier, later in pairwise([0, *counted_widths(widths, d_sae), d_sae])):
        raise ValueError(
            f"loss.{name}.widths are {list(widths)}, which are {counted_widths(widths, d_sae)} of {d_sae} latents; "
            "they must increase, from at least 1 to fewer than all, because the whole width is always one more level"
        )

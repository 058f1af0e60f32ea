"""Terms that give gradient to what the main reconstruction cannot reach: a gate, dead latents."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.autoencoders.record import ForwardRecord
from fsae.losses.term import LossTerm, Moment, TermValue
from fsae.ranges import COUNT, WEIGHT
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern


@dataclass(frozen=True, kw_only=True)
class GateReconstruction(LossTerm):
    """|x - (relu(gate) W_dec + b_dec)|^2 (arXiv 2404.16014, eq. 8).

    Attributes:
        detach_decoder: pass no gradient to W_dec and b_dec, as in the paper: the auxiliary path trains the gate and
            cannot pull the decoder. SAELens passes it. Where rows may have any norm it has to be passed: else nothing
            that the gate needs keeps the sparsity term from shrinking the rows.
    """

    detach_decoder: bool = True

    needs: ClassVar[frozenset[str]] = frozenset({"gate"})

    @property
    def detaches_decoder(self) -> bool:
        return self.detach_decoder

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        assert record.gate is not None
        W_dec, b_dec = record.W_dec, record.b_dec
        if self.detach_decoder:
            W_dec, b_dec = W_dec.detach(), b_dec.detach()
        through_gate = record.gate.decode(W_dec) + b_dec
        return TermValue((record.wanted_of_codes - through_gate).square().sum(1).mean())


@dataclass(frozen=True, kw_only=True)
class AuxK(LossTerm):
    """The error with which the k strongest dead latents explain the residual of each sample (arXiv 2406.04093, A.2).

    |e - z_dead W_dec|^2 with the residual e = x - x_hat detached, no bias, times min(dead / k, 1) so that a few dead
    latents do not have to explain everything.

    Attributes:
        k: dead latents per sample; null for half the input's width.
    """

    weight: float = field(default=1 / 32, metadata=WEIGHT)
    k: int | None = field(default=None, metadata=COUNT)

    needs: ClassVar[frozenset[str]] = frozenset({"pre_activations"})

    def measure(self, record: ForwardRecord, moment: Moment) -> TermValue:
        dead = moment.dead_latents
        if dead.numel() == 0:
            return TermValue(record.inputs.new_zeros(()))
        wanted = self.number(record)
        assert record.pre_activations is not None
        pre = record.pre_activations.at(dead)
        error = explained(record, record.error.detach(), dead, pre, min(wanted, dead.numel()))
        return TermValue(error * min(dead.numel() / wanted, 1.0))

    def number(self, record: ForwardRecord) -> int:
        """Return the number of dead latents per sample that should explain the residual."""
        return self.k if self.k is not None else max(1, record.inputs.shape[1] // 2)


def explained(
    record: ForwardRecord,
    residual: Float[Tensor, "batch d_in"],
    latents: Int[Tensor, " latents"],
    pre: Float[Tensor, "batch latents"],
    k: int,
    eligible: Bool[Tensor, " latents"] | None = None,
) -> Float[Tensor, ""]:
    """Return the squared error with which the k strongest of some latents explain each sample's residual.

    Args:
        residual: without gradient.
        latents: their indices.
        pre: their pre-activations.
        eligible: those that may explain it; None for all.
    """
    scores = pre if record.selection_score is None else record.selection_score(pre, latents)
    if eligible is not None:
        scores = scores.masked_fill(~eligible, -torch.inf)
    places = scores.topk(k, dim=1, sorted=False).indices
    # Not rectified: a latent whose pre-activations are all negative would never get a gradient again.
    values = pre.gather(1, places)
    if eligible is not None:
        values = values * eligible[places]
    codes = Codes(values.flatten(), Pattern.of_indices(latents[places], len(record.W_dec)))
    return (residual - codes.decode(record.W_dec)).square().sum(1).mean()

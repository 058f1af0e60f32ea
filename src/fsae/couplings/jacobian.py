"""The Jacobian term, by which two autoencoders around an MLP let it be computed by few pairs of latents.

    mean |J_ij|,  J_ij = d code_j / d code_i = W_dec_i M W_enc_j        (Farnik et al. 2025, arXiv 2502.18147)

Latent i reads the MLP's input, latent j its output, and M is the Jacobian of the MLP at the sample's true input. The
mean is over the k x k block of a sample's active latents: at all other places J is zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder
from fsae.autoencoders.record import ForwardRecord
from fsae.autoencoders.selection import KSettings
from fsae.autoencoders.settings import AutoencoderSettings
from fsae.couplings.coupling import Coupling
from fsae.language_models.mlp import MLP
from fsae.losses.term import Weighted
from fsae.ranges import COUNT, WEIGHT
from fsae.sparse.codes import Codes

# The entries of samples' operands, (samples, k, d_mlp), that are held at a time.
ENTRIES_AT_ONCE = 2**25


@dataclass(frozen=True, kw_only=True)
class JacobianSparsity(Weighted, group="population.jacobian"):
    """The Jacobian term of a pair of autoencoders around an MLP; weight 0 for none.

    The published weights, from 1 for Pythia 70M to 0.125 for Pythia 6.9B, apply to an error that is averaged over
    dimensions. Times the width of the model, for an error that is summed over dimensions, each of them is 512.

    Attributes:
        weight: factor of the mean in the sum of both members' objectives.
        samples: samples of each batch on which the term is measured, all if it has fewer. Each has its whole block, and
            their mean is an unbiased estimate of the batch's. Work is in proportion to it until samples * k exceeds
            d_sae.
    """

    weight: float = field(default=0.0, metadata=WEIGHT)
    samples: int = field(default=64, metadata=COUNT)


def check_pair(arch: AutoencoderSettings) -> None:
    """Raise ValueError if the Jacobian between two autoencoders of this architecture is no k x k block."""
    if not (arch.fixed_k and arch.affine_encoder and "pre_activations" in arch.provides):
        raise ValueError(
            f"a Jacobian pair has a block of k x k active latents per sample, and arch {arch.name} has no fixed k, or "
            "no affine encoder; choose one that has both, as in arch=topk arch.k=32"
        )


def active_latents(codes: Codes, k: int | None = None) -> tuple[Int[Tensor, "batch k"], Bool[Tensor, "batch k"]]:
    """Return the k latents of each sample that may be on, and which of them are; sparse codes have a k of their own."""
    values = codes.values.detach()
    if codes.pattern is not None:
        assert codes.pattern.per_row is not None
        shape = codes.pattern.batch, codes.pattern.per_row
        return codes.pattern.columns.view(shape), values.view(shape) != 0
    assert k is not None
    latents = values.abs().topk(k, dim=1, sorted=False).indices
    return latents, values.gather(1, latents) != 0


def jacobian_blocks(
    into: Sequence[tuple[Float[Tensor, "rows d_mlp"], Float[Tensor, "batch d_mlp"]]],
    out: Float[Tensor, "rows d_mlp"],
    read: Int[Tensor, "batch k"],
    written: Int[Tensor, "batch k"],
) -> Float[Tensor, "batch k k"]:
    """Return the Jacobian of the written latents in the read ones, sample by sample.

    Args:
        into: decoder rows times each matrix into the MLP's hidden layer, with that matrix' factors
            (`MLP.into_hidden`).
        out: encoder columns times the matrix out of the hidden layer.
        read, written: the rows of each sample's latents in these.
    """
    (first, *others) = [_rows(table, read) * factors.unsqueeze(1) for table, factors in into]
    return sum(others, start=first) @ _rows(out, written).transpose(1, 2)


def _rows(table: Tensor, places: Tensor) -> Float[Tensor, "batch k d_mlp"]:
    return table.index_select(0, places.flatten()).view(*places.shape, -1)


class JacobianCoupling(Coupling):
    """The Jacobian term of two members: the autoencoder of an MLP's input and that of its output.

    The gradient reaches the decoder of the first and the encoder of the second; which latents are active has none.

    Args:
        settings: of the term, with a weight above 0.
        mlp: the MLP, for raw vectors.
        input_scale, target_scale: the factors by which training multiplies its inputs and outputs.
        entries_at_once: see ENTRIES_AT_ONCE.
    """

    def __init__(
        self,
        settings: JacobianSparsity,
        mlp: MLP,
        input_scale: float,
        target_scale: float,
        entries_at_once: int = ENTRIES_AT_ONCE,
    ):
        self.settings, self._mlp, self._entries_at_once = settings, mlp, entries_at_once
        self._input_scale, self._target_scale = input_scale, target_scale
        self._sums, self._count = torch.zeros(2), 0

    def backward(
        self, autoencoders: Sequence[Autoencoder], records: Sequence[ForwardRecord], step: int, progress: float
    ) -> None:
        weight = self.settings.weight_at(progress)
        if weight == 0:
            return
        # Batches are shuffled, so the first samples are as good as any.
        x = records[0].inputs[: self.settings.samples].detach() / self._input_scale
        (read, reads), (written, writes) = (
            tuple(each[: len(x)] for each in active_latents(record.codes, _k_of(autoencoder)))
            for record, autoencoder in zip(records, autoencoders, strict=True)
        )
        decoder, read = _needed(records[0].W_dec, read)
        assert records[1].W_enc is not None
        encoder, written = _needed(records[1].W_enc.T, written)
        matrices, factors = zip(*self._mlp.into_hidden(x), strict=True)
        # With a gradient of their own, so that samples are taken some at a time.
        tables = [*(decoder @ matrix for matrix in matrices), encoder @ self._mlp.out.W.T]
        held = [table.detach().requires_grad_() for table in tables]
        unit = self._target_scale / self._input_scale / (reads.numel() * writes.shape[1])
        some = max(1, self._entries_at_once // (read.shape[1] * held[-1].shape[1]))
        total = x.new_zeros(())
        for begin in range(0, len(x), some):
            part = slice(begin, begin + some)
            into = [(table, each[part]) for table, each in zip(held, factors, strict=False)]
            blocks = jacobian_blocks(into, held[-1], read[part], written[part])
            on = reads[part].unsqueeze(2) & writes[part].unsqueeze(1)
            value = (blocks.abs() * on).sum() * unit
            value.backward()
            total = total + value.detach()
        pulled = [(table * cast(Tensor, each.grad)).sum() for table, each in zip(tables, held, strict=True)]
        gradient = weight * torch.stack(pulled).sum()
        # Both may be frozen.
        if gradient.requires_grad:
            gradient.backward()
        self._sums = self._sums.to(total.device) + torch.stack([total, weight * total])
        self._count += 1

    def forget(self) -> None:
        """Do nothing: no step depends on an earlier one."""

    def read_interval(self) -> dict[str, float]:
        means: dict[str, float] = {}
        if self._count:
            means["jacobian"], means["jacobian_weighted"] = (self._sums / self._count).tolist()
        self._sums, self._count = torch.zeros(2), 0
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums, self._count = state["sums"], state["count"]


def _k_of(autoencoder: Autoencoder) -> int:
    sparse = cast(SparseAutoencoder, autoencoder)
    return cast(KSettings, sparse.settings).k_of(sparse)


def _needed(rows: Float[Tensor, "d_sae d"], latents: Int[Tensor, "batch k"]) -> tuple[Tensor, Int[Tensor, "batch k"]]:
    """Return rows, among them those of some samples' latents, and the latents' places in these."""
    if not rows.is_cuda:
        named, places = latents.unique(return_inverse=True)
        return rows.index_select(0, named), places
    # Finding each latent once would wait for the device.
    if latents.numel() >= len(rows):
        return rows, latents
    return rows.index_select(0, latents.flatten()), torch.arange(latents.numel(), device=rows.device).view_as(latents)

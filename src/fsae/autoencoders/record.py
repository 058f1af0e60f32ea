"""The forward record, which autoencoders return and losses and metrics read, and its parts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fsae.sparse.codes import Codes


@dataclass(frozen=True, eq=False)
class AffineMap:
    """An affine map of the inputs, (inputs - centre) @ weight + bias with weight = directions * scale.

    The products are computed on first use.
    """

    inputs: Float[Tensor, "batch d_in"]
    directions: Float[Tensor, "d_in d_sae"]
    bias: Float[Tensor, " d_sae"]
    scale: Float[Tensor, " d_sae"] | None = None
    centre: Float[Tensor, " d_in"] | None = None

    @cached_property
    def centred(self) -> Float[Tensor, "batch d_in"]:
        return self.inputs if self.centre is None else self.inputs - self.centre

    @cached_property
    def weight(self) -> Float[Tensor, "d_in d_sae"]:
        return self.directions if self.scale is None else self.directions * self.scale

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        return torch.addmm(self.bias, self.centred, self.weight)

    def at(self, latents: Tensor) -> Float[Tensor, "batch latents"]:
        """Compute the columns of the named latents only."""
        # The backward pass of index_select adds in a fixed order, and the gradient of rows lies in memory as that of
        # W_enc does.
        weight = self.directions.T.index_select(0, latents).T
        if self.scale is not None:
            weight = weight * self.scale.index_select(0, latents)
        return torch.addmm(self.bias.index_select(0, latents), self.centred, weight)


@dataclass(frozen=True, eq=False)
class PartnerCodes:
    """Codes of the sample before each one of a batch.

    Attributes:
        codes: (batch, d_sae), without meaning if there is no partner.
        there: (batch,) which samples have a partner.
    """

    codes: Codes
    there: Bool[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class ForwardRecord:
    """The results of one forward pass. Losses and metrics read it and need no branch per architecture.

    Attributes:
        inputs: (batch, d_in) the encoder's inputs, as given.
        pre_activations: (batch, d_sae) as an affine map of the inputs, or of what the encoder makes of them. For gated:
            the magnitude path. None if codes do not come from pre-activations.
        codes: (batch, d_sae).
        reconstruction: (batch, d_out).
        W_dec: (d_sae, d_out).
        b_dec: (d_out,).
        code_weights: (d_sae,) the weight of each code in a sparsity term: decoder norms under `free`, None (all one)
            under `unit`.
        gate: gated only: the rectified gate pre-activations, which carry the sparsity loss and the auxiliary path.
        active: jumprelu only: 1 where a code is on, with the straight-through gradient to the thresholds.
        block_ends: the latent at which each block of latents ends that read and write some parts only; None without
            blocks.
        group_rank: group_topk only: latents of a group; they lie side by side.
        selection_score: maps pre-activations of the named latents to the scores by which latents are selected; None if
            the score is the pre-activation itself.
        W_enc: (d_in, d_sae) the encoder's weights; None if the record was made without an autoencoder.
        targets: (batch, d_out) what the reconstruction should be; None for the inputs themselves.
        linear: (batch, d_out) the part of the reconstruction that a linear path from the inputs adds; None without one.
        partners: codes of the samples before these in their order, if a term compares them.
    """

    inputs: Float[Tensor, "batch d_in"]
    pre_activations: AffineMap | None
    codes: Codes
    reconstruction: Float[Tensor, "batch d_out"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    code_weights: Float[Tensor, " d_sae"] | None = None
    gate: Codes | None = None
    active: Codes | None = None
    selection_score: Callable[[Tensor, Tensor], Tensor] | None = None
    block_ends: tuple[int, ...] | None = None
    group_rank: int | None = None
    W_enc: Float[Tensor, "d_in d_sae"] | None = None
    targets: Float[Tensor, "batch d_out"] | None = None
    linear: Float[Tensor, "batch d_out"] | None = None
    partners: PartnerCodes | None = None

    @property
    def wanted(self) -> Float[Tensor, "batch d_out"]:
        """The vectors that the reconstruction is compared with: the targets, or the inputs if there are no targets."""
        return self.inputs if self.targets is None else self.targets

    @property
    def base(self) -> Float[Tensor, "..."]:
        """The reconstruction without any latent: b_dec, (d_out,), or with a linear path (batch, d_out)."""
        return self.b_dec if self.linear is None else self.b_dec + self.linear

    @property
    def wanted_of_codes(self) -> Float[Tensor, "batch d_out"]:
        """The vectors that codes @ W_dec + b_dec should be: what the linear path, if any, leaves of `wanted`."""
        return self.wanted if self.linear is None else self.wanted - self.linear.detach()

    @property
    def error(self) -> Float[Tensor, "batch d_out"]:
        """The difference wanted - reconstruction."""
        return self.wanted - self.reconstruction


@dataclass(frozen=True, eq=False)
class Encoding:
    """The results of an encoder, which `Autoencoder.forward` completes to a `ForwardRecord`.

    Attributes:
        extra: fields of the record that only this architecture fills.
    """

    codes: Codes
    pre_activations: AffineMap | None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DecidingMap:
    """The affine functions of the input whose largest values decide which latents are on, in float64.

    The regions in which they choose the same latents are the cells of a power diagram of order k.

    Attributes:
        columns: (functions, d_in) their gradients.
        biases: (functions,).
        k: number of the largest values that decide.
        rectified: a latent is also off if its value is negative.
        signed: magnitudes decide instead of values.
    """

    columns: Float[Tensor, "functions d_in"]
    biases: Float[Tensor, " functions"]
    k: int
    rectified: bool = False
    signed: bool = False


@dataclass(frozen=True, eq=False)
class SAELensForm:
    """An autoencoder as SAELens' format holds it.

    Attributes:
        architecture: the format's name for it.
        tensors: by the format's names: W_enc (d_in, d_sae), W_dec (d_sae, d_out), b_dec (d_out,), W_skip (d_out, d_in),
            others (d_sae,).
        config: keys of `cfg.json` that only this architecture has.
        trained_as: the format's name for the trained architecture, if it differs from `architecture`.
        known: SAELens itself has this architecture and can open the folder.
    """

    architecture: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    trained_as: str | None = None
    known: bool = True

"""Settings that architectures share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

import torch

from fsae.ranges import INNER_SHARE, Ranged, between

if TYPE_CHECKING:
    from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder


class DecoderNorm(Enum):
    """What holds the decoder's rows: `unit` renormalises them after every step, `free` lets sparsity terms weigh each
    code by its row's norm, so that a code cannot be made cheap by a long row."""

    unit = "unit"
    free = "free"


class EncoderInit(Enum):
    """`transpose` starts the encoder as the decoder's transpose, `random` draws it on its own."""

    transpose = "transpose"
    random = "random"


class BiasInit(Enum):
    """Where `b_dec` starts: zeros, or the mean or geometric median of the first activations."""

    zeros = "zeros"
    mean = "mean"
    geometric_median = "geometric_median"


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(Ranged, ABC, group="arch"):
    """What every autoencoder lets one choose: its size.

    Attributes:
        expansion: d_sae as a multiple of d_in, used where `d_sae` is null.
        d_sae: number of latents, or null.
    """

    expansion: float = field(default=8.0, metadata=between(above=0, most=2**16))
    d_sae: int | None = field(default=None, metadata=between(least=1, most=2**28, meaning="a number of latents"))

    # Fields of the forward record beyond the common ones; loss terms name those they need.
    provides: ClassVar[frozenset[str]] = frozenset()
    # Whether every sample has the same number of codes, so that their places are known without counting them.
    fixed_k: ClassVar[bool] = False

    def width(self, d_in: int) -> int:
        """Number of latents for inputs of width d_in."""
        if self.d_sae is not None:
            return self.d_sae
        width = round(self.expansion * d_in)
        if width < 1:
            raise ValueError(
                f"arch.expansion is {self.expansion:g}, which makes no latent of vectors of width {d_in}; raise it, or "
                "set arch.d_sae"
            )
        return width

    def check_width(self, d_in: int) -> None:
        """Raise ValueError where a choice cannot hold for inputs of width d_in."""

    def first_density(self, d_in: int) -> float:
        """Share of codes that are on before the first step: half, where nothing is known."""
        return 0.5

    @abstractmethod
    def build(self, d_in: int, generator: torch.Generator) -> "Autoencoder":
        """An autoencoder with fresh weights, drawn from `generator`."""


@dataclass(frozen=True, kw_only=True)
class SparseAutoencoderSettings(AutoencoderSettings):
    """What every sparse autoencoder lets one choose.

    Attributes:
        apply_b_dec_to_input: subtract b_dec from the input before encoding.
        decoder_norm: what holds the decoder's rows.
        encoder_init: how W_enc starts.
        tied: W_enc is W_dec transposed for good: one parameter, trained through both.
        init_norm: norm of the decoder's rows at the start (1 under `decoder_norm: unit`).
        b_dec_init: where b_dec starts.
    """

    apply_b_dec_to_input: bool = True
    decoder_norm: DecoderNorm = DecoderNorm.unit
    encoder_init: EncoderInit = EncoderInit.transpose
    tied: bool = False
    init_norm: float = field(default=1.0, metadata=between(above=0, most=10**6))
    b_dec_init: BiasInit = BiasInit.geometric_median

    def __post_init__(self):
        super().__post_init__()
        if self.decoder_norm is DecoderNorm.unit and self.init_norm != 1.0:
            raise ValueError(
                f"arch.init_norm is {self.init_norm} but arch.decoder_norm is unit, which makes it 1 after one step; "
                "set arch.decoder_norm=free"
            )
        if self.tied and self.encoder_init is EncoderInit.random:
            raise ValueError(
                "arch.encoder_init is random but arch.tied makes the encoder the decoder's transpose; leave one of "
                "them out"
            )

    @abstractmethod
    def build(self, d_in: int, generator: torch.Generator) -> "SparseAutoencoder":
        """An autoencoder with fresh weights, drawn from `generator`."""


@dataclass(frozen=True, kw_only=True)
class RectifiedSettings(SparseAutoencoderSettings):
    """What the architectures share that switch each latent on by itself.

    Attributes:
        init_density: share of the first vectors on which each latent fires at the start (its bias is set so); null
            leaves the biases at zero, and about half of all latents on. A small share makes the first steps sparse,
            and no latent begins dead.
    """

    init_density: float | None = field(default=None, metadata=INNER_SHARE)

    def first_density(self, d_in: int) -> float:
        return super().first_density(d_in) if self.init_density is None else self.init_density

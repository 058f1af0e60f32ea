"""What every autoencoder has: weights, one typed forward record, and one class for training and inference."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fsae.autoencoders.codes import Codes
from fsae.autoencoders.encoder_product import encoder_product
from fsae.autoencoders.pattern import Pattern
from fsae.ranges import INNER_SHARE, Ranged, between


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


@dataclass(frozen=True, eq=False)
class AffineMap:
    """(inputs - centre) @ weight + bias with weight = directions * scale, multiplied out only by who needs it."""

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
        """Only the named latents' columns."""
        # index_select's backward adds in a fixed order, and of rows its gradient is held as that of W_enc is.
        weight = self.directions.T.index_select(0, latents).T
        if self.scale is not None:
            weight = weight * self.scale.index_select(0, latents)
        return torch.addmm(self.bias.index_select(0, latents), self.centred, weight)


@dataclass(frozen=True, eq=False)
class ForwardRecord:
    """Everything a forward pass knows; losses and metrics read it and need no branch per architecture.

    Attributes:
        inputs: (batch, d_in) what was encoded, as given.
        pre_activations: (batch, d_sae) as an affine map of the encoder's input. For gated: the magnitude path.
        codes: (batch, d_sae).
        reconstruction: (batch, d_in).
        W_dec: (d_sae, d_in).
        b_dec: (d_in,).
        code_weights: (d_sae,) what a unit of each code is worth to a sparsity term: decoder norms under `free`,
            None (all one) under `unit`.
        gate: gated only: the rectified gate pre-activations, which carry the sparsity loss and the auxiliary path.
        active: jumprelu only: 1 where a code is on, with the straight-through gradient to the thresholds.
        rank: what latents are chosen by, as a function of their pre-activations, where it is not their value.
        targets: (batch, d_in) what the inputs shall be turned into; None for the inputs themselves.
    """

    inputs: Float[Tensor, "batch d_in"]
    pre_activations: AffineMap
    codes: Codes
    reconstruction: Float[Tensor, "batch d_in"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    code_weights: Float[Tensor, " d_sae"] | None = None
    gate: Codes | None = None
    active: Codes | None = None
    rank: Callable[[Tensor], Tensor] | None = None
    targets: Float[Tensor, "batch d_in"] | None = None

    @property
    def wanted(self) -> Float[Tensor, "batch d_in"]:
        """What the reconstruction is compared with: the targets, or the inputs where there are none."""
        return self.inputs if self.targets is None else self.targets

    @property
    def error(self) -> Float[Tensor, "batch d_in"]:
        """wanted - reconstruction."""
        return self.wanted - self.reconstruction


@dataclass(frozen=True, eq=False)
class Encoding:
    """What an architecture's encoder returns; the base class completes it to a `ForwardRecord`."""

    codes: Codes
    pre_activations: AffineMap
    extra: dict[str, Any] = field(default_factory=dict)


class Autoencoder(nn.Module, ABC):
    """x -> codes -> codes @ W_dec + b_dec, however it came by its weights.

    W_enc is (d_in, d_sae) and W_dec (d_sae, d_in). W_enc is held transposed in memory, because the sparse products
    read and write whole rows of one latent in both matrices.
    """

    W_enc: Tensor
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    # Parameters and buffers that stay in float32 when the others go to a shorter type, because small steps would be
    # lost there.
    float32_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, d_in: int, d_sae: int):
        super().__init__()
        self.d_in, self.d_sae = d_in, d_sae

    @property
    def centre(self) -> Float[Tensor, " d_in"] | None:
        """What is subtracted from the input before encoding; None for nothing."""
        return None

    @property
    def deciding(self) -> slice:
        """The latents that decide which are on; the others follow them."""
        return slice(None)

    @property
    def code_weights(self) -> Float[Tensor, " d_sae"] | None:
        """What a unit of each code is worth to a sparsity term; None for one each."""
        return None

    @abstractmethod
    def encode(self, x: Float[Tensor, "batch d_in"], sparse: bool = False) -> Encoding:
        """Codes of x; with `sparse` they hold only the entries that may be non-zero. The numbers are the same."""

    def forward(
        self, x: Float[Tensor, "batch d_in"], sparse: bool = False, targets: Float[Tensor, "batch d_in"] | None = None
    ) -> ForwardRecord:
        encoding = self.encode(x, sparse)
        return ForwardRecord(
            inputs=x,
            pre_activations=encoding.pre_activations,
            codes=encoding.codes,
            reconstruction=self.decode(encoding.codes),
            W_dec=self.W_dec,
            b_dec=self.b_dec,
            code_weights=self.code_weights,
            targets=targets,
            **encoding.extra,
        )

    def decode(self, codes: Codes) -> Float[Tensor, "batch d_in"]:
        """codes @ W_dec + b_dec."""
        return codes.decode(self.W_dec) + self.b_dec

    def encoder_product(
        self,
        x: Float[Tensor, "batch d_in"],
        select: Callable[[Tensor], Pattern] | None = None,
        narrow: Callable[[Pattern, Tensor], Tensor] | None = None,
    ) -> Codes:
        """encoder_input(x) @ W_enc, everywhere or where it is wanted; see `encoder_product`."""
        return encoder_product(x, self.centre, self.W_enc, select, narrow)

    def encoder_input(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """x, less b_dec where the settings say so."""
        return x if self.centre is None else x - self.centre

    def _apply(self, fn, recurse=True):
        before = {name: getattr(self, name).data for name in self.float32_names}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            moved = getattr(self, name)
            if moved.dtype in (torch.bfloat16, torch.float16):
                moved.data = tensor.to(moved.device, torch.float32)
        return self


class SparseAutoencoder(Autoencoder):
    """An autoencoder that gradient steps make sparse, from weights that are drawn.

    W_enc is a parameter unless the settings tie it to W_dec.
    """

    def __init__(self, d_in: int, settings: SparseAutoencoderSettings, generator: torch.Generator):
        super().__init__(d_in, settings.width(d_in))
        self.settings = settings
        rows = torch.randn(self.d_sae, d_in, generator=generator)
        rows *= settings.init_norm / rows.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(rows)
        if settings.encoder_init is EncoderInit.random:
            self.W_enc = nn.Parameter((torch.randn(self.d_sae, d_in, generator=generator) / d_in**0.5).T)
        elif not settings.tied:
            self.W_enc = nn.Parameter(rows.clone().T)
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        # Only what is no plain attribute is looked for here.
        if name == "W_enc" and self.settings.tied:
            return self.W_dec.T
        return super().__getattr__(name)

    def untie(self) -> None:
        """Give the encoder weights of its own, equal to those that it shared, where it has none."""
        if self.settings.tied:
            self.settings = replace(self.settings, tied=False)
            self.W_enc = nn.Parameter(self.W_dec.detach().clone().T)

    @property
    def centre(self) -> Float[Tensor, " d_in"] | None:
        return self.b_dec if self.settings.apply_b_dec_to_input else None

    @property
    def code_weights(self) -> Float[Tensor, " d_sae"] | None:
        return self.W_dec.norm(dim=1) if self.settings.decoder_norm is DecoderNorm.free else None

    @torch.no_grad()
    def set_decoder(self, W_dec: Float[Tensor, "d_sae d_in"], b_dec: Float[Tensor, " d_in"]) -> None:
        """Take another decoder; every input keeps its codes.

        Where b_dec is subtracted from the input, the encoder's biases make up for the difference.
        """
        if self.settings.apply_b_dec_to_input:
            self._raise_pre_activations((b_dec.to(self.b_dec) - self.b_dec) @ self.W_enc)
        self.W_dec.copy_(W_dec)
        self.b_dec.copy_(b_dec)

    def _raise_pre_activations(self, by: Float[Tensor, " d_sae"]) -> None:
        """Add to what the biases add to the encoder's product."""
        self.get_parameter("b_enc").add_(by)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Give every decoder row unit norm, as `decoder_norm: unit` wants after each step."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Remove from the decoder's gradient what would only change its rows' norms (they are renormalised)."""
        grad = self.W_dec.grad
        assert grad is not None
        grad.addcmul_((grad * self.W_dec).sum(dim=1, keepdim=True), self.W_dec, value=-1.0)

"""Autoencoders: weights, one forward record, and one class for training and inference."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fsae.autoencoders.record import Encoding, ForwardRecord
from fsae.autoencoders.settings import DecoderNorm, EncoderInit, SparseAutoencoderSettings
from fsae.sparse.codes import Codes
from fsae.sparse.encoder_product import encoder_product
from fsae.sparse.pattern import Pattern


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

"""Principal component analysis as an autoencoder: local PCA with a single cell."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.abs_topk import AbsTopK, AbsTopKSettings
from fsae.autoencoders.fitted import FittedAutoencoder, FittedSettings
from fsae.autoencoders.layout import Ends


@dataclass(frozen=True, kw_only=True)
class PCASettings(FittedSettings):
    """Settings of PCA: the nearest point of one affine space through the mean, spanned by d_sae components."""

    components_key: ClassVar[str] = "arch.d_sae"

    def cells(self, d_in: int) -> int:
        return 1

    def components(self, d_in: int) -> int:
        return self.width(d_in)

    def build(self, ends: Ends | int, generator: torch.Generator) -> "PCA":
        ends = Ends.of(ends)
        return PCA(ends, self.width(ends.input.width))


class PCA(AbsTopK, FittedAutoencoder):
    """An AbsTopK autoencoder whose latents are all on: x_hat = m + V V' (x - m). It has one cell."""

    def __init__(self, ends: Ends | int, rank: int):
        super().__init__(ends, AbsTopKSettings(k=rank, d_sae=rank), torch.Generator())
        self.cells, self.rank = 1, rank
        self.set_weights(torch.zeros(1, self.d_in))

    @torch.no_grad()
    def set_weights(
        self,
        centres: Float[Tensor, "1 d_in"],
        components: Float[Tensor, "1 rank d_in"] | None = None,
        means: Float[Tensor, "1 d_in"] | None = None,
    ) -> None:
        """Take over the mean and orthonormal components, zero by default; the centre decides nothing."""
        rows = torch.zeros_like(self.W_dec) if components is None else components[0]
        self.W_dec.copy_(rows)
        self.W_enc.copy_(rows.T)
        self.b_dec.copy_((centres if means is None else means)[0])

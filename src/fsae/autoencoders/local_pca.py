"""k-means with a principal component analysis in each cell; k-means alone is its rank 0, PCA alone its single cell.

Sparse autoencoders stand between k-means and the optimal piecewise-affine autoencoder with as many cells, k-means with
local PCA: their regions share the rows of one decoder (SplInterp, arXiv 2505.11836).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fsae.autoencoders.fitted import FittedAutoencoder, FittedSettings
from fsae.autoencoders.layout import Ends, Factor
from fsae.autoencoders.record import AffineMap, DecidingMap, Encoding, SAELensForm
from fsae.autoencoders.settings import count_in
from fsae.ranges import between
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern


@dataclass(frozen=True, kw_only=True)
class KMeansSettings(FittedSettings):
    """Settings of k-means: the centre of the cell that an input lies in, with d_sae cells."""

    saelens_names: ClassVar[tuple[str, ...]] = ("kmeans",)

    def cells(self, d_in: int) -> int:
        return self.width(d_in)

    def components(self, d_in: int) -> int:
        return 0

    def build(self, ends: Ends | int, generator: torch.Generator) -> "LocalPCA":
        return LocalPCA(ends, self)


@dataclass(frozen=True, kw_only=True)
class LocalPCASettings(FittedSettings):
    """Settings of local PCA: the nearest point of an affine space per cell, with d_sae / (1 + rank) cells.

    Attributes:
        rank: principal components of each cell.
    """

    rank: int = field(
        default=15, metadata=between(least=1, most=10**6, meaning="a number of components (arch=kmeans has none)")
    )

    saelens_names: ClassVar[tuple[str, ...]] = ("local_pca",)

    def __post_init__(self):
        super().__post_init__()
        if self.d_sae is not None and self.d_sae % (1 + self.rank):
            raise ValueError(
                f"arch.d_sae is {self.d_sae}; each cell has a centre and arch.rank={self.rank} components, so make it "
                f"a multiple of {1 + self.rank}"
            )

    def width(self, d_in: int) -> int:
        return self.cells(d_in) * (1 + self.rank)

    def cells(self, d_in: int) -> int:
        return max(1, super().width(d_in) // (1 + self.rank))

    def components(self, d_in: int) -> int:
        return self.rank

    @classmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        rank = count_in(config, "rank")
        if d_sae % (1 + rank):
            raise ValueError(f"d_sae is {d_sae}, no multiple of 1 + rank ({1 + rank})")
        return cls(d_sae=d_sae, rank=rank)

    def build(self, ends: Ends | int, generator: torch.Generator) -> "LocalPCA":
        return LocalPCA(ends, self)


class LocalPCA(FittedAutoencoder):
    """An autoencoder with x_hat = m_k + V_k V_k' (x - m_k) in the cell k of the nearest centre c_k, or m_k alone.

    Each cell has 1 + rank latents side by side. The code of the first is 1 in the cell; the codes of the others, the
    components, are the coordinates of x - m_k; all are 0 outside the cell. The pre-activation of the first latent is
    x . c_k - |c_k|^2 / 2, which is largest for the nearest centre, and its row of W_dec is m_k: the encoder holds the
    centre, the decoder the point that stands for the cell. `b_dec` is zero.
    """

    def __init__(self, ends: Ends | int, settings: KMeansSettings | LocalPCASettings):
        d_in = Ends.of(ends).input.width
        super().__init__(ends, settings.width(d_in))
        self.settings = settings
        self.cells, self.rank = settings.cells(d_in), settings.components(d_in)
        self.W_dec = nn.Parameter(torch.zeros(self.d_sae, d_in))
        self.W_enc = nn.Parameter(torch.zeros(self.d_sae, d_in).T)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def settings_type(self) -> type[FittedSettings]:
        return type(self.settings)

    @property
    def deciding(self) -> slice:
        return slice(None, None, 1 + self.rank)

    @property
    def centres(self) -> Float[Tensor, "cells d_in"]:
        return self.W_enc.T[self.deciding]

    @property
    def means(self) -> Float[Tensor, "cells d_in"]:
        """One point of each affine space."""
        return self.W_dec[self.deciding]

    @property
    def components(self) -> Float[Tensor, "cells rank d_in"]:
        return self.W_dec.view(self.cells, 1 + self.rank, self.d_in)[:, 1:]

    @torch.no_grad()
    def set_weights(
        self,
        centres: Float[Tensor, "cells d_in"],
        components: Float[Tensor, "cells rank d_in"] | None = None,
        means: Float[Tensor, "cells d_in"] | None = None,
    ) -> None:
        means = centres if means is None else means
        rows = centres.new_zeros(self.cells, 1 + self.rank, self.d_in)
        biases = centres.new_zeros(self.cells, 1 + self.rank)
        if components is not None:
            rows[:, 1:] = components
            biases[:, 1:] = -(components @ means.unsqueeze(2)).squeeze(2)
        rows[:, 0], biases[:, 0] = centres, -centres.square().sum(1) / 2
        self.W_enc.copy_(rows.flatten(0, 1).T)
        self.b_enc.copy_(biases.flatten())
        rows[:, 0] = means
        self.W_dec.copy_(rows.flatten(0, 1))

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        size = 1 + self.rank
        cells = (x @ self.W_enc[:, ::size] + self.b_enc[::size]).argmax(1)
        latents = cells.unsqueeze(1) * size + torch.arange(size, device=x.device)
        pattern = Pattern.of_indices(latents, self.d_sae)
        codes = Codes(x.new_ones(len(x) * size), pattern)
        if self.rank > 0:
            coordinates = codes.sample(x, self.W_enc.T).values + codes.columns(self.b_enc)
            of_centre = pattern.columns % size == 0
            codes = codes.with_values(torch.where(of_centre, 1.0, coordinates))
        return Encoding(codes if sparse else Codes(codes.dense()), AffineMap(x, self.W_enc, self.b_enc))

    @torch.no_grad()
    def change_unit(self, scale: Factor, target_scale: Factor) -> None:
        """See `Autoencoder.change_unit`; the code of a centre stays 1."""
        self.set_weights(self.centres / scale, self.components, self.means / scale)

    @torch.no_grad()
    def deciding_map(self) -> DecidingMap:
        centres = self.centres.double()
        return DecidingMap(centres, -centres.square().sum(1) / 2, 1)

    def to_saelens(self) -> SAELensForm:
        """Return the form under a name that SAELens does not have: none of its codes depend on an argmax alone."""
        name = "local_pca" if self.rank else "kmeans"
        return SAELensForm(name, self.saelens_tensors("b_enc"), {"rank": self.rank}, known=False)

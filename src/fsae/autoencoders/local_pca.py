"""k-means with a principal component analysis in each cell; k-means alone is its rank 0, PCA alone its single cell.

Between the first and the optimal piecewise-affine autoencoder with as many cells, k-means with local PCA, stand sparse
autoencoders, whose regions share their decoder's rows (SplInterp, arXiv 2505.11836).
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.fitted import FittedSettings
from fsae.autoencoders.record import AffineMap, Encoding
from fsae.ranges import between
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern


@dataclass(frozen=True, kw_only=True)
class KMeansSettings(FittedSettings):
    """The centre of the cell that an input lies in: d_sae cells."""

    def cells(self, d_in: int) -> int:
        return self.width(d_in)

    def components(self, d_in: int) -> int:
        return 0

    def build(self, d_in: int, generator: torch.Generator) -> "LocalPCA":
        return LocalPCA(d_in, self)


@dataclass(frozen=True, kw_only=True)
class LocalPCASettings(FittedSettings):
    """The nearest point of an affine space of the cell's own: d_sae / (1 + rank) cells.

    Attributes:
        rank: principal components of each cell.
    """

    rank: int = field(
        default=15, metadata=between(least=1, most=10**6, meaning="a number of components (arch=kmeans has none)")
    )

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

    def build(self, d_in: int, generator: torch.Generator) -> "LocalPCA":
        return LocalPCA(d_in, self)


class LocalPCA(Autoencoder):
    """x_hat = m_k + V_k V_k' (x - m_k) in the cell k of the nearest centre c_k, or m_k alone.

    Each cell has 1 + rank latents side by side: one whose code is 1 in the cell, and its components, with the
    coordinates of x - m_k; all others are 0. The first one's pre-activation is x . c_k - |c_k|^2 / 2, which is largest
    where x is nearest to c_k, and its row of W_dec is m_k: the encoder has the centre, the decoder what stands for the
    cell. `b_dec` is zero.

    Attributes:
        cells: how many.
        rank: components of each.
    """

    def __init__(self, d_in: int, settings: KMeansSettings | LocalPCASettings):
        super().__init__(d_in, settings.width(d_in))
        self.cells, self.rank = settings.cells(d_in), settings.components(d_in)
        self.W_dec = nn.Parameter(torch.zeros(self.d_sae, d_in))
        self.W_enc = nn.Parameter(torch.zeros(self.d_sae, d_in).T)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def deciding(self) -> slice:
        return slice(None, None, 1 + self.rank)

    @property
    def centres(self) -> Float[Tensor, "cells d_in"]:
        return self.W_enc.T[self.deciding]

    @property
    def means(self) -> Float[Tensor, "cells d_in"]:
        """The points that the affine spaces go through."""
        return self.W_dec[self.deciding]

    @property
    def components(self) -> Float[Tensor, "cells rank d_in"]:
        return self.W_dec.view(self.cells, 1 + self.rank, self.d_in)[:, 1:]

    @torch.no_grad()
    def place(
        self,
        centres: Float[Tensor, "cells d_in"],
        components: Float[Tensor, "cells rank d_in"] | None = None,
        means: Float[Tensor, "cells d_in"] | None = None,
    ) -> None:
        """Take over centres, orthonormal components and means; components are zero where there are none yet, means
        the centres."""
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

"""k-means with a principal component analysis in each cell; k-means alone is its rank 0, PCA alone its single cell.

Between the first and the optimal piecewise-affine autoencoder with as many cells, k-means with local PCA, stand sparse
autoencoders, whose regions share their decoder's rows (SplInterp, arXiv 2505.11836).
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fsae.autoencoders.base import AffineMap, Autoencoder, AutoencoderSettings, Encoding
from fsae.autoencoders.codes import Codes
from fsae.autoencoders.pattern import Pattern
from fsae.autoencoders.topk import AbsTopK, AbsTopKSettings
from fsae.ranges import between


@dataclass(frozen=True, kw_only=True)
class FittedSettings(AutoencoderSettings):
    """What the autoencoders share that are fitted to data without a gradient."""

    fixed_k: ClassVar[bool] = True
    # The setting that says how many components there are.
    components_key: ClassVar[str] = "arch.rank"

    @abstractmethod
    def cells(self, d_in: int) -> int:
        """Into how many cells the inputs' space is divided."""

    @abstractmethod
    def components(self, d_in: int) -> int:
        """Principal components of each cell."""

    @abstractmethod
    def build(self, d_in: int, generator: torch.Generator) -> "LocalPCA | PCA":
        """An autoencoder that is zero everywhere; nothing is drawn from `generator`."""

    def check_width(self, d_in: int) -> None:
        """Raise ValueError where vectors of this width have fewer components."""
        if self.components(d_in) > d_in:
            raise ValueError(
                f"{self.components_key} asks for {self.components(d_in)} principal components, but vectors of width "
                f"{d_in} have {d_in}; set it to {d_in} or less"
            )

    def first_density(self, d_in: int) -> float:
        return 1 / self.cells(d_in)


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


@dataclass(frozen=True, kw_only=True)
class PCASettings(FittedSettings):
    """The nearest point of one affine space through the mean, spanned by d_sae principal components."""

    components_key: ClassVar[str] = "arch.d_sae"

    def cells(self, d_in: int) -> int:
        return 1

    def components(self, d_in: int) -> int:
        return self.width(d_in)

    def build(self, d_in: int, generator: torch.Generator) -> "PCA":
        return PCA(d_in, self.width(d_in))


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


class PCA(AbsTopK):
    """x_hat = m + V V' (x - m): an AbsTopK autoencoder that leaves every latent on.

    Attributes:
        cells: one.
        rank: its components, which are all latents.
    """

    def __init__(self, d_in: int, rank: int):
        super().__init__(d_in, AbsTopKSettings(k=rank, d_sae=rank), torch.Generator())
        self.cells, self.rank = 1, rank
        self.place(torch.zeros(1, d_in))

    @torch.no_grad()
    def place(
        self,
        centres: Float[Tensor, "1 d_in"],
        components: Float[Tensor, "1 rank d_in"] | None = None,
        means: Float[Tensor, "1 d_in"] | None = None,
    ) -> None:
        """Take over the mean and orthonormal components, which are zero where there are none yet; the one centre
        decides nothing."""
        rows = torch.zeros_like(self.W_dec) if components is None else components[0]
        self.W_dec.copy_(rows)
        self.W_enc.copy_(rows.T)
        self.b_dec.copy_((centres if means is None else means)[0])

"""Settings and interface that the architectures fitted without gradients share."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.settings import AutoencoderSettings


class FittedAutoencoder(Autoencoder):
    """An autoencoder of cells, each with a centre and principal components, that is fitted without gradients.

    Attributes:
        cells: number of cells.
        rank: number of principal components of each cell.
    """

    cells: int
    rank: int

    @abstractmethod
    def set_weights(
        self,
        centres: Float[Tensor, "cells d_in"],
        components: Float[Tensor, "cells rank d_in"] | None = None,
        means: Float[Tensor, "cells d_in"] | None = None,
    ) -> None:
        """Take over centres, orthonormal components and means; components default to zero, means to the centres."""


@dataclass(frozen=True, kw_only=True)
class FittedSettings(AutoencoderSettings):
    """Settings of the autoencoders that are fitted to data without a gradient."""

    fixed_k: ClassVar[bool] = True
    fitted: ClassVar[bool] = True
    # The setting of the number of components.
    components_key: ClassVar[str] = "arch.rank"

    @abstractmethod
    def cells(self, d_in: int) -> int:
        """Return the number of cells into which the space of inputs is divided."""

    @abstractmethod
    def components(self, d_in: int) -> int:
        """Return the number of principal components of each cell."""

    @abstractmethod
    def build(self, ends: Ends | int, generator: torch.Generator) -> FittedAutoencoder:
        """Build an autoencoder that is zero everywhere; nothing is drawn from `generator`."""

    def check_width(self, d_in: int) -> None:
        """Raise ValueError if vectors of this width have fewer components."""
        if self.components(d_in) > d_in:
            raise ValueError(
                f"{self.components_key} asks for {self.components(d_in)} principal components, but vectors of width "
                f"{d_in} have {d_in}; set it to {d_in} or less"
            )

    def check_ends(self, ends: Ends) -> None:
        super().check_ends(ends)
        if not ends.plain:
            raise ValueError(
                f"arch {self.name} is fitted to vectors of one site, and has no weights between two; choose an "
                "architecture that gradients train, such as topk, or layout=autoencoder"
            )

    def density(self, d_in: int, progress: float) -> float:
        return 1 / self.cells(d_in)

    @classmethod
    def from_saelens(cls, architecture: str, config: Mapping[str, Any], d_sae: int) -> Self:
        return cls(d_sae=d_sae)

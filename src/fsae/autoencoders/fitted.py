"""Settings that architectures fitted without gradients share."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from fsae.autoencoders.settings import AutoencoderSettings

if TYPE_CHECKING:
    from fsae.autoencoders.local_pca import LocalPCA
    from fsae.autoencoders.pca import PCA


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

"""Settings of a population: autoencoders that one run trains side by side on the same batches."""

from dataclasses import dataclass, field

from fsae.couplings.jacobian import JacobianSparsity
from fsae.couplings.mutual import Mutual
from fsae.ranges import Ranged, between
from fsae.training.resample import Reinitialisation


@dataclass(frozen=True, kw_only=True)
class PopulationSettings(Ranged, group="population"):
    """Settings of a population: its size, the terms between its members, and re-initialisation.

    Attributes:
        size: number of autoencoders; they differ in the seed of their weights.
        mutual: the term that pulls their directions toward each other.
        jacobian: the term of a pair of autoencoders around an MLP (`layout=jacobian_pair`).
        reinitialise: when latents of an autoencoder, or all of them, are resampled.
    """

    size: int = field(default=1, metadata=between(least=1, most=10_000, meaning="a number of autoencoders"))
    mutual: Mutual = field(default_factory=Mutual)
    jacobian: JacobianSparsity = field(default_factory=JacobianSparsity)
    reinitialise: Reinitialisation = field(default_factory=Reinitialisation)

    def __post_init__(self):
        super().__post_init__()
        if self.size == 1 and self.mutual.weight > 0:
            raise ValueError(
                f"population.mutual.weight is {self.mutual.weight}, but a mutual term needs at least two members; "
                "raise population.size"
            )

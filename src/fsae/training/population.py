"""Settings of a population: autoencoders that one run trains side by side on the same batches."""

from dataclasses import dataclass, field

from fsae.couplings.mutual import Mutual
from fsae.ranges import Ranged, between
from fsae.training.reinitialisation import Reinitialisation


@dataclass(frozen=True, kw_only=True)
class PopulationSettings(Ranged, group="population"):
    """How many autoencoders a run trains, and what is between them.

    Attributes:
        size: how many; they differ in the seed of their weights.
        mutual: what pulls their features toward each other.
        reinitialise: when an autoencoder, or some of its latents, is started over.
    """

    size: int = field(default=1, metadata=between(least=1, most=10_000, meaning="a number of autoencoders"))
    mutual: Mutual = field(default_factory=Mutual)
    reinitialise: Reinitialisation = field(default_factory=Reinitialisation)

    def __post_init__(self):
        super().__post_init__()
        if self.size == 1 and self.mutual.weight > 0:
            raise ValueError(
                f"population.mutual.weight is {self.mutual.weight}, but there is nobody to be like; raise "
                "population.size"
            )

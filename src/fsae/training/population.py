"""Settings of a population: autoencoders that one run trains side by side on the same batches."""

from dataclasses import dataclass, field

from fsae.losses.mutual import Mutual
from fsae.training.reinitialisation import Reinitialisation


@dataclass(frozen=True, kw_only=True)
class PopulationSettings:
    """How many autoencoders a run trains, and what is between them.

    Attributes:
        size: how many; they differ in the seed of their weights.
        mutual: what pulls their features toward each other.
        reinitialise: when an autoencoder, or some of its latents, is started over.
    """

    size: int = 1
    mutual: Mutual = field(default_factory=Mutual)
    reinitialise: Reinitialisation = field(default_factory=Reinitialisation)

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"population.size is {self.size}; it must be at least 1")
        if self.size == 1 and self.mutual.weight > 0:
            raise ValueError(
                f"population.mutual.weight is {self.mutual.weight}, but there is nobody to be like; raise "
                "population.size"
            )

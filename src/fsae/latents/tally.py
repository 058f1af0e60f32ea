"""A tally: how often and how strongly every latent is on."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.latents.bins import BINS, bin_of
from fsae.latents.block import Block


class Tally:
    """Counts, moments and histograms of every latent.

    Counts add up exactly in any order. Sums of codes would not, so there is one pair of sums per part of the data; they
    are added in the order of the parts at the end.

    Args:
        d_sae: latents.
        device: of the counts.
    """

    def __init__(self, d_sae: int, device: torch.device | None = None):
        self.d_sae = d_sae
        self.histogram: Int[Tensor, "d_sae bins"] = torch.zeros(d_sae, BINS, dtype=torch.int32, device=device)
        self.samples = 0
        self._sums: dict[int, Float[Tensor, "2 d_sae"]] = {}

    def add(self, block: Block, vectors: int, part: int) -> None:
        """Count the codes of a block of `vectors` vectors."""
        self.samples += vectors
        place = block.latents * BINS + bin_of(block.values.abs())
        self.histogram.view(-1).index_add_(0, place, torch.ones_like(place, dtype=torch.int32))
        if part not in self._sums:
            self._sums[part] = torch.zeros(2, self.d_sae, dtype=torch.float64, device=block.values.device)
        values = block.values.double()
        self._sums[part][0].index_add_(0, block.latents, values)
        self._sums[part][1].index_add_(0, block.latents, values.square())

    def merge(self, other: "Tally") -> None:
        """Add the counts of other parts of the data."""
        assert not self._sums.keys() & other._sums.keys(), "a part is counted once"
        self.histogram += other.histogram
        self.samples += other.samples
        self._sums |= other._sums

    @property
    def count(self) -> Int[Tensor, " d_sae"]:
        """Return the samples on which each latent is on."""
        return self.histogram.sum(1, dtype=torch.int64)

    def moments(self) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
        """Return mean and standard deviation of each latent's codes over the samples on which it is on; NaN if none."""
        total, squares = torch.zeros(2, self.d_sae, dtype=torch.float64, device=self.histogram.device)
        for part in sorted(self._sums):
            total, squares = total + self._sums[part][0], squares + self._sums[part][1]
        count = self.count.double()
        mean = torch.where(count > 0, total / count, torch.nan)
        return mean, (squares / count - mean.square()).clamp_min(0).sqrt()

    def state(self) -> dict[str, Tensor]:
        """Return everything that it holds."""
        sums = {f"sums.{part}": sums for part, sums in self._sums.items()}
        return {"histogram": self.histogram, "samples": torch.tensor(self.samples), **sums}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.histogram = state["histogram"]
        self.samples = int(state["samples"])
        self._sums = {int(name.split(".")[1]): each for name, each in state.items() if name.startswith("sums.")}

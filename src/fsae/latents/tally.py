"""A tally: how often and how strongly every latent is on."""

from collections.abc import Mapping

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
        latents: those of the dictionary that are looked at.
        device: of the counts.
    """

    def __init__(self, latents: range, device: torch.device | None = None):
        self.latents = latents
        self.histogram: Int[Tensor, "latents bins"] = torch.full((len(latents), BINS), 0, dtype=torch.int32).to(device)
        self.samples = 0
        self._sums: dict[int, Float[Tensor, "2 latents"]] = {}

    def add(self, block: Block, vectors: int, part: int) -> None:
        """Count the codes of a block of `vectors` vectors; the block has no other latents."""
        self.samples += vectors
        latents = block.latents - self.latents.start
        place = latents * BINS + bin_of(block.values.abs())
        self.histogram.view(-1).index_add_(0, place, torch.ones_like(place, dtype=torch.int32))
        if part not in self._sums:
            self._sums[part] = torch.zeros(2, len(self.latents), dtype=torch.float64, device=block.values.device)
        values = block.values.double()
        self._sums[part][0].index_add_(0, latents, values)
        self._sums[part][1].index_add_(0, latents, values.square())

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the counts of other parts of the data, as `state` returns them."""
        device = self.histogram.device
        sums = {int(name.split(".")[1]): each.to(device) for name, each in state.items() if name.startswith("sums.")}
        assert not self._sums.keys() & sums.keys(), "a part is counted once"
        self.histogram += state["histogram"].to(device)
        self.samples += int(state["samples"])
        self._sums |= sums

    @property
    def count(self) -> Int[Tensor, " latents"]:
        """Return the samples on which each latent is on."""
        return self.histogram.sum(1, dtype=torch.int64)

    def moments(self) -> tuple[Float[Tensor, " latents"], Float[Tensor, " latents"]]:
        """Return mean and standard deviation of each latent's codes over the samples on which it is on; NaN if none."""
        total, squares = torch.zeros(2, len(self.latents), dtype=torch.float64, device=self.histogram.device)
        for part in sorted(self._sums):
            total, squares = total + self._sums[part][0], squares + self._sums[part][1]
        count = self.count.double()
        mean = torch.where(count > 0, total / count, torch.nan)
        return mean, (squares / count - mean.square()).clamp_min(0).sqrt()

    def state(self) -> dict[str, Tensor]:
        """Return everything that it holds."""
        sums = {f"sums.{part}": sums for part, sums in self._sums.items()}
        return {"histogram": self.histogram, "samples": torch.tensor(self.samples), **sums}

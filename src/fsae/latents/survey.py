"""A survey: everything that one pass gathers about the latents of one dictionary."""

import torch
from torch import Tensor

from fsae.latents.bins import BINS
from fsae.latents.block import Block
from fsae.latents.cofiring import Cofiring
from fsae.latents.hits import Hits, HitSizes
from fsae.latents.tally import Tally


class Survey:
    """Tally, hits and co-firing of one dictionary's latents over some parts of the data.

    Surveys of different parts merge to that of the whole, with the same bytes for every order of the parts.

    Args:
        d_sae: latents.
        sizes: of the hits.
        cofiring: samples of each latent whose other latents are kept.
        seed: of the sampling.
        device: of everything gathered.

    Attributes:
        parts: numbers of the parts that it has.
        left_out: positions that were left out for their norm.
    """

    def __init__(self, d_sae: int, sizes: HitSizes, cofiring: int, seed: int, device: torch.device | None = None):
        self._made_of = (d_sae, sizes, cofiring, seed, device)
        self.tally = Tally(d_sae, device)
        self.hits = Hits(d_sae, sizes, seed, device)
        self.cofiring = Cofiring(d_sae, cofiring, seed, device=device)
        self.parts: set[int] = set()
        self.left_out = 0

    def add(self, block: Block, left_out: int, part: int) -> None:
        """Add the codes of some contexts of a part, and the number of their positions that were left out."""
        self.parts.add(part)
        self.left_out += left_out
        self.tally.add(block, int(block.places.keep.sum()), part)
        self.hits.add(block)
        self.cofiring.add(block)

    def like(self) -> "Survey":
        """Return an empty survey of the same dictionary and sizes."""
        return Survey(*self._made_of)

    def merge(self, other: "Survey") -> None:
        """Add a survey of other parts."""
        assert not self.parts & other.parts, "a part is surveyed once"
        self.parts |= other.parts
        self.left_out += other.left_out
        self.tally.merge(other.tally)
        self.hits.merge(other.hits)
        self.cofiring.merge(other.cofiring)

    def state(self) -> dict[str, Tensor]:
        """Return everything that it holds, on the CPU."""
        parts = {"tally": self.tally.state(), "hits": self.hits.state(), "cofiring": self.cofiring.state()}
        flat = {f"{part}/{name}": each.cpu() for part, state in parts.items() for name, each in state.items()}
        numbers = {"parts": torch.tensor(sorted(self.parts)), "left_out": torch.tensor(self.left_out)}
        return flat | numbers

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned; the survey is new."""
        device = self.tally.histogram.device
        self.parts, self.left_out = set(state["parts"].tolist()), int(state["left_out"])
        for name, part in (("tally", self.tally), ("hits", self.hits), ("cofiring", self.cofiring)):
            prefix = f"{name}/"
            part.load({key[len(prefix) :]: each.to(device) for key, each in state.items() if key.startswith(prefix)})


def survey_bytes(survey: Survey) -> int:
    """Return the bytes that a survey needs at most, without the sets of co-firing latents.

    With F latents, B activation bins and H hits per latent: 12 F B for the histogram and the limits of the bins, and
    2 F H row_bytes for the hits, which are there twice while they are sorted.
    """
    d_sae, sizes = survey.tally.d_sae, survey.hits.sizes
    return d_sae * (12 * BINS + 2 * sizes.rows * sizes.row_bytes)

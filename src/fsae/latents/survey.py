"""A survey: everything that one pass gathers about the latents of one dictionary."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fsae.latents.block import Block
from fsae.latents.cofiring import Cofiring
from fsae.latents.hits import Hits, HitSizes
from fsae.latents.tally import Tally


class Survey:
    """Tally, hits and co-firing of a dictionary's latents, or of some of them, over some parts of the data.

    Surveys of different parts merge to that of the whole, with the same bytes for every order of the parts.

    Args:
        latents: those of the dictionary that are looked at.
        d_sae: latents of the dictionary.
        sizes: of the hits.
        cofiring: samples of each latent whose other latents are kept.
        seed: of the sampling.
        device: of everything gathered.

    Attributes:
        parts: numbers of the parts that it has.
        left_out: positions that were left out for their norm.
    """

    def __init__(
        self,
        latents: range,
        d_sae: int,
        sizes: HitSizes,
        cofiring: int,
        seed: int,
        device: torch.device | None = None,
    ):
        self.latents = latents
        self._made_of = (latents, d_sae, sizes, cofiring, seed, device)
        self.tally = Tally(latents, device)
        self.hits = Hits(latents, d_sae, sizes, seed, device)
        self.cofiring = Cofiring(latents, d_sae, cofiring, seed, device)
        self.parts: set[int] = set()
        self.left_out = 0

    def add(self, block: Block, left_out: int, part: int) -> None:
        """Add the codes of some contexts of a part, and the number of their positions that were left out."""
        self.parts.add(part)
        self.left_out += left_out
        entries = block.entries_of(self.latents)
        self.cofiring.add(block, entries)
        own = block.where(entries)
        self.tally.add(own, int(block.places.keep.sum()), part)
        self.hits.add(own)

    def like(self) -> "Survey":
        """Return an empty survey of the same latents and sizes."""
        return Survey(*self._made_of)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add a survey of other parts, as `state` returns it."""
        parts = set(state["parts"].tolist())
        assert not self.parts & parts, "a part is surveyed once"
        self.parts |= parts
        self.left_out += int(state["left_out"])
        for name, part in (("tally", self.tally), ("hits", self.hits), ("cofiring", self.cofiring)):
            prefix = f"{name}/"
            part.merge({key.removeprefix(prefix): each for key, each in state.items() if key.startswith(prefix)})

    def state(self) -> dict[str, Tensor]:
        """Return everything that it holds, without a copy on the CPU."""
        parts = {"tally": self.tally.state(), "hits": self.hits.state(), "cofiring": self.cofiring.state()}
        flat = {f"{part}/{name}": each.cpu() for part, state in parts.items() for name, each in state.items()}
        numbers = {"parts": torch.tensor(sorted(self.parts)), "left_out": torch.tensor(self.left_out)}
        return flat | numbers

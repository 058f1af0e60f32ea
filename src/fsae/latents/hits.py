"""Hits: of every latent the top contexts, and samples of weaker ones, each with the codes around its peak."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.latents.bins import bin_of
from fsae.latents.block import Block
from fsae.latents.ranked import Ranked
from fsae.latents.sampling import hash_of
from fsae.outputs.latent_store import SAMPLED, TOP


@dataclass(frozen=True)
class HitSizes:
    """Sizes of the hits of one latent.

    Attributes:
        top: contexts in which its largest code is greatest.
        per_bin: samples of each activation bin.
        bins: activation bins, half octaves, that are sampled, from the one of its maximum down.
        window: positions on either side of a peak.
    """

    top: int
    per_bin: int
    bins: int
    window: int

    @property
    def latent_bytes(self) -> int:
        """Return the bytes of a latent's hits: per hit its order (8), position (4) and codes (4 each); per list its
        limit (8), and the highest bin (2)."""
        column_bytes = 4 + 4 * (2 * self.window + 1)
        sampled = self.bins * Ranked.group_bytes(self.per_bin, column_bytes)
        return Ranked.group_bytes(self.top, column_bytes) + sampled + 2


class Hits:
    """Of every latent, exactly the contexts with the largest codes, one hit per context, and a uniform sample of each
    activation bin's contexts.

    A sample is drawn by a hash of seed, context and latent. It does not depend on the order of the contexts, and parts
    of the data merge to the whole.

    Args:
        latents: those of the dictionary that are looked at.
        d_sae: latents of the dictionary.
        sizes: what is kept of each.
        seed: of the sampling.
        device: of the rows.
    """

    def __init__(self, latents: range, d_sae: int, sizes: HitSizes, seed: int, device: torch.device | None = None):
        self.latents, self.sizes, self._d_sae, self._seed = latents, sizes, d_sae, seed
        columns = {"position": (torch.int32, None), "values": (torch.float32, 2 * sizes.window + 1)}
        self._top = Ranked(len(latents), sizes.top, columns, device=device)
        # A latent has as many lists as bins that are sampled: bins that are `sizes.bins` apart share one, because only
        # one of them is near enough to the maximum.
        self._sampled = Ranked(len(latents) * sizes.bins, sizes.per_bin, columns, device=device)
        # The bin of each latent's largest code so far.
        self._highest = torch.full((len(latents),), -1, dtype=torch.int16, device=device)

    def add(self, block: Block) -> None:
        """Offer every context in which a latent is on; the block has no other latents."""
        segments, sizes = block.segments(), self.sizes
        latents = segments.latents - self.latents.start
        strength = segments.values.abs()
        bins = bin_of(strength)
        self._raise(self._highest.scatter_reduce(0, latents, bins.short(), "amax"))

        def columns_of(some: Int[Tensor, " some"]) -> dict[str, Tensor]:
            return {"position": segments.positions[some].int(), "values": segments.windows(some, sizes.window)}

        # The bits of a positive float are in the order of the numbers. Equal codes are ordered by context.
        by_strength = ((2**31 - strength.view(torch.int32).long()) << 32) | segments.contexts
        self._top.add(latents, by_strength, columns_of)
        drawn = hash_of(segments.contexts * self._d_sae + segments.latents, self._seed)
        by_hash = (drawn << 32) | segments.contexts
        near = bins > self._highest[latents] - sizes.bins
        self._sampled.add(latents * sizes.bins + bins % sizes.bins, by_hash, columns_of, near)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the hits of other parts of the data, as `state` returns them."""
        highest = state["highest"].to(self._highest.device)
        self._raise(torch.maximum(self._highest, highest))
        tables = {
            name: {key.removeprefix(f"{name}."): each for key, each in state.items() if key.startswith(f"{name}.")}
            for name in ("top", "sampled")
        }
        self._top.merge(tables["top"])
        risen = self._bins(highest) != self._bins(self._highest)
        self._sampled.merge(tables["sampled"], ~risen.flatten())

    def largest(self) -> Float[Tensor, " latents"]:
        """Return each latent's code of the largest absolute value; NaN for none."""
        tables = self._top.tensors()
        return tables["values"][:, 0, self.sizes.window].where(self._highest >= 0, torch.nan)

    def rows(self, first: int = 0, end: int | None = None) -> dict[str, dict[str, Tensor]]:
        """Return the rows of some latents, counted from the first of `latents`, by group.

        The columns are `latent`, `bin`, `rank`, `context`, `position`, `value` and `values`.
        """
        end = len(self.latents) if end is None else end
        bins = self.sizes.bins
        top, sampled = self._top.rows(slice(first, end)), self._sampled.rows(slice(first * bins, end * bins))
        for rows in (top, sampled):
            rows["value"] = rows["values"][:, self.sizes.window]
            rows["context"] = rows.pop("order") & 0xFFFFFFFF
        top |= {"latent": top["group"], "bin": bin_of(top["value"].abs())}
        own = self._bins(self._highest).flatten()[sampled["group"]]
        sampled |= {"latent": sampled["group"] // bins, "bin": own}
        for rows in (top, sampled):
            rows["latent"] = rows["latent"] + self.latents.start
        return {TOP: top, SAMPLED: sampled}

    def state(self) -> dict[str, Tensor]:
        """Return everything that it holds, without a copy."""
        named = {"top": self._top.tensors(), "sampled": self._sampled.tensors()}
        rows = {f"{table}.{name}": values for table, own in named.items() for name, values in own.items()}
        return rows | {"highest": self._highest}

    def _bins(self, highest: Int[Tensor, " latents"]) -> Int[Tensor, "latents bins"]:
        """Return the bin of each of a latent's lists."""
        lists = torch.arange(self.sizes.bins, device=highest.device)
        return highest[:, None].long() - (highest[:, None].long() - lists) % self.sizes.bins

    def _raise(self, highest: Int[Tensor, " latents"]) -> None:
        """Take over the bins of the largest codes; samples that are too far below them are dropped."""
        changed = self._bins(highest) != self._bins(self._highest)
        self._highest = highest
        self._sampled.clear(changed.flatten().nonzero().squeeze(1))

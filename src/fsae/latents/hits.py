"""Hits: of every latent the top contexts, and samples of weaker ones, each with the codes around its peak."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.latents.bins import BINS, bin_of
from fsae.latents.block import Block, Segments
from fsae.latents.ranked import Ranked
from fsae.latents.sampling import hash_of
from fsae.outputs.latent_store import SAMPLED, TOP

_COLUMNS: dict[str, tuple[torch.dtype, int | None]] = {
    "context": (torch.int32, None),
    "position": (torch.int32, None),
    "value": (torch.float32, None),
}
# Segments whose windows are made at once: they are few megabytes, even if every latent is on in every context.
_AT_ONCE = 2**17


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
    def rows(self) -> int:
        """Return the most rows of one latent."""
        return self.top + self.bins * self.per_bin

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row: its window, group and order (8 each), context, position and value (4 each)."""
        return 4 * (2 * self.window + 1) + 28


class Hits:
    """Of every latent, exactly the contexts with the largest codes, one hit per context, and a uniform sample of each
    activation bin's contexts.

    A sample is drawn by a hash of seed, context and latent. It does not depend on the order of the contexts, and parts
    of the data merge to the whole.

    Args:
        d_sae: latents.
        sizes: what is kept of each.
        seed: of the sampling.
        device: of the rows.
    """

    def __init__(self, d_sae: int, sizes: HitSizes, seed: int, device: torch.device | None = None):
        self.d_sae, self.sizes, self._seed = d_sae, sizes, seed
        columns = _COLUMNS | {"values": (torch.float32, 2 * sizes.window + 1)}
        self.top = Ranked(d_sae, sizes.top, columns, device=device)
        self.sampled = Ranked(d_sae * BINS, sizes.per_bin, columns, device=device)
        # The bin of each latent's largest code so far.
        self._highest = torch.full((d_sae,), -1, dtype=torch.int16, device=device)

    def add(self, block: Block) -> None:
        """Offer every context in which a latent is on."""
        segments = block.segments
        strength = segments.values.abs()
        bins = bin_of(strength)
        self._highest.scatter_reduce_(0, segments.latents, bins.short(), "amax")
        # The bits of a positive float are in the order of the numbers. Equal codes are ordered by context.
        by_strength = ((2**31 - strength.view(torch.int32).long()) << 32) | segments.contexts
        drawn = hash_of(segments.contexts * self.d_sae + segments.latents, self._seed)
        by_hash = (drawn << 32) | segments.contexts
        self._offer(self.top, segments, segments.latents, by_strength)
        sampled = bins > self._highest[segments.latents].long() - self.sizes.bins
        self._offer(self.sampled, segments, segments.latents * BINS + bins, by_hash, sampled)

    def merge(self, other: "Hits") -> None:
        """Add the hits of other parts of the data."""
        self._highest = torch.maximum(self._highest, other._highest)
        self.top.add(**other.top.rows())
        self.sampled.add(**other.sampled.rows())

    def rows(self) -> dict[str, dict[str, Tensor]]:
        """Return the rows by group, each with `latent`, `bin` and `rank` besides its own columns."""
        top, sampled = self.top.rows(), self._high_samples()
        bins = bin_of(top["value"].abs())
        found = {
            TOP: top | {"latent": top["group"], "bin": bins},
            SAMPLED: sampled | {"latent": sampled["group"] // BINS, "bin": sampled["group"] % BINS},
        }
        for rows in found.values():
            group = rows["group"]
            rows["rank"] = torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)
        return found

    def state(self) -> dict[str, Tensor]:
        """Return everything that it holds."""
        named = {"top": self.top.rows(), "sampled": self._high_samples()}
        rows = {f"{table}.{name}": values for table, own in named.items() for name, values in own.items()}
        return rows | {"highest": self._highest}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self._highest = state["highest"]
        for name, table in (("top", self.top), ("sampled", self.sampled)):
            table.add(**{key.split(".")[1]: rows for key, rows in state.items() if key.startswith(f"{name}.")})

    def _offer(
        self,
        table: Ranked,
        segments: Segments,
        group: Int[Tensor, " segments"],
        order: Int[Tensor, " segments"],
        which: Bool[Tensor, " segments"] | None = None,
    ) -> None:
        begin = 0
        while begin < len(group):
            part = slice(begin, begin + _AT_ONCE)
            wanted = table.wanted(group[part], order[part])
            if which is not None:
                wanted &= which[part]
            some = wanted.nonzero().squeeze(1) + begin
            windows: Float[Tensor, "some window"] = segments.windows(some, self.sizes.window)
            table.add(
                group=group[some],
                order=order[some],
                context=segments.contexts[some].int(),
                position=segments.positions[some].int(),
                value=segments.values[some],
                values=windows,
            )
            begin += _AT_ONCE

    def _high_samples(self) -> dict[str, Tensor]:
        """Return the samples of the bins that count: those near each latent's maximum."""
        rows = self.sampled.rows()
        latent, bins = rows["group"] // BINS, rows["group"] % BINS
        self.sampled.keep(bins > self._highest[latent].long() - self.sizes.bins)
        return self.sampled.rows()

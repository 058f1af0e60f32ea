"""Footprint: the memory that a survey takes beyond the language model and the dictionary."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fsae.latents.bins import BINS
from fsae.latents.latent_pass import Sizes
from fsae.latents.ranked import Ranked
from fsae.latents.scan import VECTORS_AT_ONCE
from fsae.sparse.codes import Codes

# Bytes per entry of the codes that are surveyed at once: measured with `python -m benchmarks.latents`.
_ENTRY_BYTES = 150
# Bytes per sample of co-firing sets: its order (8) and its count (4), twice while sets are ordered. A latent of a set
# takes 4 bytes, twice too.
_SAMPLE_BYTES, _MEMBER_BYTES = 24, 8


@dataclass(frozen=True)
class Footprint:
    """Bytes that a survey takes.

    Attributes:
        latents: of the dictionary.
        per_latent: bytes for each latent that is looked at.
        sets: bytes of the co-firing sets, whatever the number of latents that are looked at.
        block: bytes that the codes of a block take while they are surveyed. They are freed before the next block is
            read, so they come from the memory that reading has freed, as far as it reaches.
    """

    latents: int
    per_latent: int
    sets: int
    block: int

    @property
    def kept(self) -> int:
        """Return the bytes that a survey of all latents holds from its start to its end."""
        return self.latents * self.per_latent + self.sets

    @property
    def most(self) -> int:
        """Return the bytes that a survey of all latents takes at most."""
        return self.kept + self.block


def footprint(sizes: Sizes, codes: Codes, samples: int, parts: int, at_once: int = VECTORS_AT_ONCE) -> Footprint:
    """Return the footprint of a survey.

    With F latents, H = top + bins per_bin hits per latent, window w, R co-firing samples and P parts of the data:
    F (4 96 + 16 P + H (12 + 4 (2 w + 1)) + 8 (R + bins + 2)) bytes for histograms, moments, hits and draws, taken at
    once; 24 + 8 l0 bytes per sample whose set of latents is kept; 150 l0 bytes per sample of a block.

    A sample is kept if its hash, between 0 and 1, is below R / (samples in which the latent is on) for any of its
    latents. The mean of the greatest of these limits over some samples' codes gives the number of sets.

    Args:
        sizes: of the pass.
        codes: of some samples.
        samples: that are read in all.
        parts: of the data.
        at_once: samples that are surveyed at once.
    """
    batch, d_sae = codes.shape
    per_latent = 4 * BINS + 16 * parts + sizes.hits.latent_bytes + Ranked.group_bytes(sizes.cofiring, 0)
    counts = codes.firing_counts
    l0 = float(counts.sum()) / max(1, batch)
    limits = sizes.cofiring / (counts * (samples / max(1, batch))).clamp_min(sizes.cofiring)
    greatest = torch.zeros(batch, device=limits.device)
    if codes.pattern is None:
        greatest = (limits * (codes.values != 0)).amax(1)
    else:
        on = codes.values != 0
        greatest.scatter_reduce_(0, codes.pattern.rows[on], limits[codes.pattern.columns[on]], "amax")
    sets = samples * float(greatest.mean()) if batch else 0.0
    block = min(at_once, samples) * l0 * _ENTRY_BYTES
    return Footprint(d_sae, per_latent, int(sets * (_SAMPLE_BYTES + _MEMBER_BYTES * l0)), int(block))


def slices_needed(footprints: Sequence[Footprint], memory: float) -> int:
    """Return how many slices every dictionary's latents need, if the surveys of one slice of each are in memory at a
    time and take at most `memory` bytes; 0 if no number is enough."""
    room = memory - sum(each.sets + each.block for each in footprints)
    latents = sum(each.latents * each.per_latent for each in footprints)
    # A slice may have one latent more than another one.
    room -= sum(each.per_latent for each in footprints) if room < latents else 0
    needed = math.ceil(latents / room) if room > 0 else 0
    return needed if needed <= max(each.latents for each in footprints) else 0

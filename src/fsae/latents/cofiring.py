"""Co-firing: which latents are on together, from a sample of each latent's samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fsae.latents.block import Block
from fsae.latents.ranked import LAST, Ranked
from fsae.latents.sampling import hash_of

# Latents whose counts are made at once.
_AT_ONCE = 256
# Entries of sets that are gathered before those that no latent draws are dropped.
_SPARE = 2**20
# Samples whose sets are copied at once.
_SETS_AT_ONCE = 2**14


@dataclass(frozen=True, eq=False)
class Partners:
    """Latents that are on together with each latent more often than by chance, by falling lift; -1 for none.

    Attributes:
        latents: (d_sae, count) indices.
        share: P(other on | this on), from the sample.
        error: standard error of the share.
        lift: share / density of the other.
        jaccard: samples with both on / samples with either on.
    """

    latents: Int[np.ndarray, "d_sae count"]
    share: Float[np.ndarray, "d_sae count"]
    error: Float[np.ndarray, "d_sae count"]
    lift: Float[np.ndarray, "d_sae count"]
    jaccard: Float[np.ndarray, "d_sae count"]


class Cofiring:
    """The sets of latents that are on in some samples: for every latent, in `per_latent` samples in which it is on.

    Exact counts of pairs need memory for d_sae squared. A sample's hash decides whether it is kept, and is the same for
    all latents. So latents share samples, few sets are kept, and each latent's samples are a uniform draw from all in
    which it is on. Sets of parts of the data merge to those of the whole.

    Args:
        latents: those of the dictionary that are looked at; the sets have all others too.
        d_sae: latents of the dictionary.
        per_latent: samples kept of each.
        seed: of the hash.
        device: of the sets.
    """

    def __init__(self, latents: range, d_sae: int, per_latent: int, seed: int, device: torch.device | None = None):
        self.latents, self.per_latent, self._d_sae, self._seed = latents, per_latent, d_sae, seed
        # The samples of each latent, by their orders.
        self._drawn = Ranked(len(latents), per_latent, {}, device=device)
        self._sets = [_Sets.none(device)]
        # Entries of the first sets, which were pruned; the others may have samples that no latent has drawn any more.
        self._pruned = 0

    @property
    def samples(self) -> int:
        """Return the samples whose sets are kept."""
        self._prune()
        return len(self._sets[0].orders)

    def add(self, block: Block, latents: slice) -> None:
        """Offer every sample of a block.

        Args:
            block: with all latents of the dictionary.
            latents: its entries that belong to the latents that are looked at.
        """
        context = block.places.keep.shape[1]
        place = block.places.contexts[block.rows[latents]] * context + block.positions[latents]
        # The place makes the order unique.
        order = (hash_of(place, self._seed) << 32) | (place & 0xFFFFFFFF)
        drawn = self._drawn.add(block.latents[latents] - self.latents.start, order, lambda some: {})
        # The samples that some latent has drawn, and the latents that are on in them.
        orders = block.vectors.new_full((int(block.places.keep.sum()),), LAST)
        orders[block.vectors[latents][drawn]] = order[drawn]
        entries = (orders[block.vectors] != LAST).nonzero().squeeze(1)
        entries = entries[block.vectors[entries].argsort(stable=True)]
        vectors, counts = block.vectors[entries].unique_consecutive(return_counts=True)
        self._gather(_Sets(orders[vectors], counts.int(), block.latents[entries].int()))

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the sets of other parts of the data, as `state` returns them."""
        device = self._sets[0].orders.device
        self._drawn.merge({"order": state["drawn"]})
        self._gather(_Sets(*(state[name].to(device) for name in ("orders", "counts", "latents"))))

    def state(self) -> dict[str, Tensor]:
        """Return everything that it holds."""
        self._prune()
        (sets,) = self._sets
        return {"drawn": self._drawn.tensors()["order"], **sets._asdict()}

    def partners(self, density: Float[np.ndarray, " d_sae"], count: np.ndarray, number: int) -> Partners:
        """Return the `number` latents that co-fire most with each latent.

        A partner is on in two of the samples at least. Partners are ordered by the lift at the lower end of one
        standard error, so that a rare latent needs more than luck.

        Args:
            density: share of all samples on which each latent of the dictionary is on.
            count: samples on which it is on.
            number: partners of each.
        """
        # Imported here, because it takes a second.
        import scipy.sparse

        state = {name: each.cpu().numpy() for name, each in self.state().items()}
        latent, rank = (state["drawn"] != LAST).nonzero()
        sample = np.searchsorted(state["orders"], state["drawn"][latent, rank])
        samples, own = len(state["orders"]), len(self.latents)
        ones = np.ones(len(state["latents"]), np.int32)
        begins = np.concatenate([[0], state["counts"].cumsum(dtype=np.int64)])
        sets = scipy.sparse.csr_matrix((ones, state["latents"], begins), (samples, self._d_sae))
        drawn = scipy.sparse.csr_matrix((np.ones(len(latent), np.int32), (latent, sample)), (own, samples))
        sizes = np.bincount(latent, minlength=own)
        found = Partners(
            np.full((own, number), -1, np.int32), *(np.full((own, number), np.nan, np.float32) for _ in range(4))
        )
        own_count = count[self.latents.start : self.latents.stop]
        for begin in range(0, own, _AT_ONCE):
            both = (drawn[begin : begin + _AT_ONCE] @ sets).tocoo()
            this, other, together = both.row + begin, both.col, both.data
            several = (this + self.latents.start != other) & (together >= 2)
            this, other, together = this[several], other[several], together[several]
            share = together / sizes[this]
            # Agresti and Coull's estimate: no error of zero at a share of one.
            wide = (together + 1) / (sizes[this] + 2)
            error = np.sqrt(wide * (1 - wide) / (sizes[this] + 2))
            surely = (share - error) / density[other]
            both_on = share * own_count[this]
            jaccard = both_on / (own_count[this] + count[other] - both_on)
            more = surely > 1
            this, other, share, error, surely, jaccard = (
                each[more] for each in (this, other, share, error, surely, jaccard)
            )
            order = np.lexsort((other, -surely, this))
            place = np.arange(len(order)) - np.searchsorted(this[order], this[order])
            best = order[place < number]
            where = this[best], place[place < number]
            found.latents[where], found.share[where], found.error[where] = other[best], share[best], error[best]
            found.lift[where] = share[best] / density[other[best]]
            found.jaccard[where] = jaccard[best]
        return found

    def _gather(self, sets: "_Sets") -> None:
        self._sets.append(sets)
        if sum(len(each.latents) for each in self._sets) > self._pruned + max(_SPARE, self._pruned // 8):
            self._prune()

    def _prune(self) -> None:
        """Drop the sets of samples that no latent has drawn any more, and order the others."""
        if len(self._sets) == 1:
            return
        drawn = self._drawn.tensors()["order"]
        drawn = drawn[drawn != LAST].unique()
        # One after the other, so that only one of them is there twice.
        for number, sets in enumerate(self._sets):
            place = torch.searchsorted(drawn, sets.orders).clamp_max(max(0, len(drawn) - 1))
            self._sets[number] = sets.where(drawn[place] == sets.orders) if len(drawn) else sets
        self._sets = [_Sets.joined(self._sets)]
        self._pruned = len(self._sets[0].latents)


class _Sets(NamedTuple):
    """Sets of latents, one after the other.

    Attributes:
        orders: of each set's sample.
        counts: latents of each set.
        latents: of all sets.
    """

    orders: Int[Tensor, " samples"]
    counts: Int[Tensor, " samples"]
    latents: Int[Tensor, " entries"]

    @classmethod
    def none(cls, device: torch.device | None) -> "_Sets":
        empty = torch.empty(0, dtype=torch.int32, device=device)
        return cls(empty.long(), empty, empty)

    @classmethod
    def joined(cls, sets: Sequence["_Sets"]) -> "_Sets":
        """Return all sets, ordered by their samples."""
        unordered = cls(*(torch.cat(columns) for columns in zip(*sets, strict=True)))
        order = unordered.orders.argsort()
        orders, counts = unordered.orders[order], unordered.counts[order]
        begins = (unordered.counts.cumsum(0) - unordered.counts)[order]
        latents, end = torch.empty_like(unordered.latents), 0
        for first, length in zip(begins.split(_SETS_AT_ONCE), counts.split(_SETS_AT_ONCE), strict=True):
            within = torch.arange(int(length.sum()), device=length.device)
            within += (first - (length.cumsum(0) - length)).repeat_interleave(length, output_size=len(within))
            latents[end : end + len(within)] = unordered.latents[within]
            end += len(within)
        return cls(orders, counts, latents)

    def where(self, kept: Bool[Tensor, " samples"]) -> "_Sets":
        entries = kept.repeat_interleave(self.counts, output_size=len(self.latents))
        return _Sets(self.orders[kept], self.counts[kept], self.latents[entries])

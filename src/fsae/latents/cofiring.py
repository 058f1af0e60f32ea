"""Co-firing: which latents are on together, from a sample of each latent's samples."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.latents.block import Block
from fsae.latents.ranked import LAST
from fsae.latents.sampling import hash_of

# Latents whose counts are made at once.
_AT_ONCE = 2048


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
        d_sae: latents.
        per_latent: samples kept of each.
        seed: of the hash.
        spare: entries gathered before sets are dropped.
        device: of the sets.
    """

    def __init__(
        self, d_sae: int, per_latent: int, seed: int, *, spare: int = 2**20, device: torch.device | None = None
    ):
        self.d_sae, self.per_latent, self._seed, self._spare = d_sae, per_latent, seed, spare
        # The hash that a further sample of a latent must be below.
        self._limits = torch.full((d_sae,), LAST, dtype=torch.int64, device=device)
        self._latents = torch.empty(0, dtype=torch.int32, device=device)
        self._orders = torch.empty(0, dtype=torch.int64, device=device)
        self._new: list[tuple[Tensor, Tensor]] = []
        self._gathered = 0

    def add(self, block: Block) -> None:
        """Offer every sample of a block."""
        context = block.places.keep.shape[1]
        place = block.places.contexts[block.rows] * context + block.positions
        # The place makes the order unique.
        order = (hash_of(place, self._seed) << 32) | (place & 0xFFFFFFFF)
        self._add_wanted(block.latents.int(), order, block.vectors, int(block.places.keep.sum()))

    def merge(self, other: "Cofiring") -> None:
        """Add the sets of other parts of the data."""
        self._gather(*other._kept())
        self._prune()

    def partners(self, density: Float[np.ndarray, " d_sae"], count: np.ndarray, number: int) -> Partners:
        """Return the `number` latents that co-fire most with each latent.

        A partner is on in two of the samples at least. Partners are ordered by the lift at the lower end of one
        standard error, so that a rare latent needs more than luck.

        Args:
            density: share of all samples on which each latent is on.
            count: samples on which it is on.
            number: partners of each.
        """
        # Imported here, because it takes a second.
        import scipy.sparse

        latents, orders = (each.cpu().numpy() for each in self._kept())
        samples, sample = np.unique(orders, return_inverse=True)
        sets = scipy.sparse.csr_matrix((np.ones(len(latents), np.int32), (sample, latents)), (len(samples), self.d_sae))
        first = np.lexsort((orders, latents))
        rank = np.arange(len(first)) - np.searchsorted(latents[first], latents[first])
        own = first[rank < self.per_latent]
        drawn = scipy.sparse.csr_matrix(
            (np.ones(len(own), np.int32), (latents[own], sample[own])), (self.d_sae, len(samples))
        )
        sizes = np.asarray(drawn.sum(axis=1)).ravel()
        found = Partners(
            np.full((self.d_sae, number), -1, np.int32),
            *(np.full((self.d_sae, number), np.nan, np.float32) for _ in range(4)),
        )
        for begin in range(0, self.d_sae, _AT_ONCE):
            both = (drawn[begin : begin + _AT_ONCE] @ sets).tocoo()
            this, other, together = both.row + begin, both.col, both.data
            several = (this != other) & (together >= 2)
            this, other, together = this[several], other[several], together[several]
            share = together / sizes[this]
            # Agresti and Coull's estimate: no error of zero at a share of one.
            wide = (together + 1) / (sizes[this] + 2)
            error = np.sqrt(wide * (1 - wide) / (sizes[this] + 2))
            surely = (share - error) / density[other]
            jaccard = share * count[this] / (count[this] + count[other] - share * count[this])
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

    def state(self) -> dict[str, Tensor]:
        """Return everything that it holds."""
        latents, orders = self._kept()
        return {"latents": latents, "orders": orders}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self._gather(state["latents"], state["orders"])
        self._prune()

    def _add_wanted(self, latents: Tensor, orders: Tensor, vectors: Tensor, count: int) -> None:
        wanted = orders < self._limits[latents.long()]
        kept = wanted.new_zeros(count)
        kept[vectors[wanted]] = True
        entries = kept[vectors]
        self._gather(latents[entries], orders[entries])
        if self._gathered > self._spare:
            self._prune()

    def _gather(self, latents: Tensor, orders: Tensor) -> None:
        self._new.append((latents, orders))
        self._gathered += len(latents)

    def _prune(self) -> None:
        """Drop the sets that are among the first of no latent."""
        if not self._new:
            return
        latents = torch.cat([self._latents, *(latents for latents, _ in self._new)])
        orders = torch.cat([self._orders, *(orders for _, orders in self._new)])
        # All entries of a sample lie together, and samples are in the order of their hashes.
        sort = orders.argsort(stable=True)
        latents, orders = latents[sort], orders[sort]
        by_latent = latents.argsort(stable=True)
        sorted_latents = latents[by_latent]
        rank = torch.arange(len(by_latent), device=latents.device) - torch.searchsorted(sorted_latents, sorted_latents)
        chosen = by_latent[rank < self.per_latent]
        samples, sample = orders.unique_consecutive(return_inverse=True)
        kept = torch.zeros(len(samples), dtype=torch.bool, device=latents.device)
        kept[sample[chosen]] = True
        self._latents, self._orders = latents[kept[sample]], orders[kept[sample]]
        last = by_latent[rank == self.per_latent - 1]
        self._limits[latents[last].long()] = orders[last]
        self._new, self._gathered = [], 0

    def _kept(self) -> tuple[Int[Tensor, " entries"], Int[Tensor, " entries"]]:
        self._prune()
        return self._latents, self._orders

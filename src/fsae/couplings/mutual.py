"""The mutual term, which pulls the features of autoencoders that train side by side toward each other.

    1 - mean over pairs of members of MMCS(A, B)        (Marks et al. 2024, arXiv 2411.01220)

MMCS(A, B) is the mean cosine of each direction of A and its partner in B; the `Matching` chooses the partners.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.record import ForwardRecord
from fsae.couplings.coupling import Coupling
from fsae.losses.term import Weighted
from fsae.matching import Matching, partners, unit_rows
from fsae.ranges import COUNT, WEIGHT
from fsae.seeds import generator_for
from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern
from fsae.threads import Threads


class Directions(Enum):
    """Weights by which features are compared: the encoder's columns or the decoder's rows."""

    encoder = "encoder"
    decoder = "decoder"


@dataclass(frozen=True, kw_only=True)
class Mutual(Weighted, group="population.mutual"):
    """A population's mutual term; weight 0 for none.

    Attributes:
        weight: factor of 1 - MMCS in the sum of the members' objectives.
        matching: how partners are chosen.
        directions: the weights that are compared.
        match_every: steps between matchings; partners stay the same meanwhile.
        shuffled: draw partners once, at random, and keep them; two partners of one latent are partners of each other,
            too. `matching` and `match_every` are ignored. This is the control: a term of the same weight, whose pull
            decreases more slowly because partners are not alike to begin with.
    """

    weight: float = field(default=0.0, metadata=WEIGHT)
    matching: Matching = Matching.hungarian
    directions: Directions = Directions.decoder
    match_every: int = field(default=1, metadata=COUNT)
    shuffled: bool = False


def unit_directions(autoencoders: Sequence, directions: Directions) -> list[Tensor]:
    """Return each autoencoder's (d_sae, d_in) directions in unit length, differentiable."""
    return [unit_rows(each.W_dec if directions is Directions.decoder else each.W_enc.T) for each in autoencoders]


class MutualCoupling(Coupling):
    """The mutual term of a population.

    All directions of all members are rows of one table. A pair of partners is an entry of a symmetric sparse matrix S
    over these rows, so that the mean MMCS is half the sum of table * (S table), and its gradient is S table: one sparse
    product however many members there are.

    Args:
        settings: of the term, with a weight above 0.
        seed: of the shuffled partners.

    Attributes:
        matching_seconds: time of the matchings since the last read.
    """

    def __init__(self, settings: Mutual, seed: int):
        self.settings, self._seed = settings, seed
        # As many threads as cores: SciPy's matching uses one thread, and releases the lock of Python.
        self._threads: Threads | None = None
        self.matching_seconds = 0.0
        self._sums, self._count = torch.zeros(2), 0
        # Of S: partner by partner, as rows, columns and weights.
        self._pairs: list[Tensor] | None = None
        self._matrix: Codes | None = None

    def backward(
        self, autoencoders: Sequence[Autoencoder], records: Sequence[ForwardRecord], step: int, progress: float
    ) -> None:
        """Add the weighted term's gradient to the autoencoders' own. Waits for the device in steps with a matching.

        Raises:
            ValueError: weights that are not finite cannot be matched.
        """
        weight = self.settings.weight_at(progress)
        if weight == 0:
            return
        table = torch.cat(unit_directions(autoencoders, self.settings.directions))
        if self._pairs is None or step % self.settings.match_every == 0:
            self._match(table.detach(), len(autoencoders))
        if self._matrix is None:
            self._matrix = self._make_matrix(len(table), table.device, table.dtype)
        pulled = self._matrix.decode(table.detach())
        # S is symmetric: this has the gradient of half the sum of table * (S table).
        (-weight * (table * pulled).sum()).backward()
        value = 1 - (table.detach() * pulled).sum() / 2
        self._sums = self._sums.to(table.device) + torch.stack([value, weight * value])
        self._count += 1

    def forget(self) -> None:
        """Match again in the next step, because latents of a member were resampled."""
        self._pairs = self._matrix = None

    def read_interval(self) -> dict[str, float]:
        """Return the means of 1 - MMCS and of the weighted term over the steps since the last call (without steps, no
        means), and the time of matching; waits for the device."""
        means = {"matching_seconds": self.matching_seconds}
        if self._count:
            means["mutual"], means["mutual_weighted"] = (self._sums / self._count).tolist()
        self._sums, self._count, self.matching_seconds = torch.zeros(2), 0, 0.0
        return means

    def _match(self, table: Tensor, size: int) -> None:
        # Waits for what the device does already, which is not matching.
        if not torch.isfinite(table.sum()):
            raise ValueError(
                "weights became infinite or NaN; lower trainer.lr, raise trainer.warm_up or set trainer.clip_norm; the "
                "last checkpoint is from before"
            )
        began = time.monotonic()
        members = table.chunk(size)
        d_sae, pairs = len(members[0]), list(combinations(range(size), 2))
        rows, columns, weights = [], [], []
        if self._threads is None:
            self._threads = Threads(min(len(pairs), torch.get_num_threads()))

        def matched(pair: tuple[int, int]) -> tuple[Tensor, Tensor]:
            if self.settings.shuffled:
                of_a, of_b = (
                    torch.randperm(d_sae, generator=generator_for(self._seed, "shuffled", member)) for member in pair
                )
                return of_a.to(table.device), of_b.to(table.device)
            return partners(members[pair[0]], members[pair[1]], self.settings.matching)

        found = self._threads.map(matched, pairs, alone=False)
        for (a, b), (of_a, of_b) in zip(pairs, found, strict=True):
            weight = torch.full((len(of_a),), 1 / (len(of_a) * len(pairs)), dtype=torch.float64)
            rows += [of_a + a * d_sae, of_b + b * d_sae]
            columns += [of_b + b * d_sae, of_a + a * d_sae]
            weights += [weight, weight]
        self._pairs = [torch.cat(rows).cpu(), torch.cat(columns).cpu(), torch.cat(weights)]
        self._matrix = None
        self.matching_seconds += time.monotonic() - began

    def _make_matrix(self, size: int, device: torch.device, dtype: torch.dtype) -> Codes:
        assert self._pairs is not None
        rows, columns, weights = (each.to(device) for each in self._pairs)
        rows, order = torch.sort(rows, stable=True)
        return Codes(weights[order].to(dtype), Pattern.of_places(rows, columns[order], (size, size)))

    def state_dict(self) -> dict[str, Any]:
        return {
            "pairs": self._pairs,
            "sums": self._sums,
            "count": self._count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pairs, self._matrix = state["pairs"], None
        self._sums, self._count = state["sums"], state["count"]

"""The sum of codes.T @ codes over any number of batches."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern
from fsae.sparse.products import has_sparse_product

# Samples whose sparse codes are put by before their products are added up: going through the whole of a d_sae x d_sae
# matrix takes as long as the products of some thousand samples.
_SAMPLES_AT_ONCE = 8192


class GramSum:
    """sum z z' over samples, in float64; of sparse codes each sample costs the square of its active latents.

    Args:
        total: (d_sae, d_sae) zeros.
    """

    def __init__(self, total: Float[Tensor, "d_sae d_sae"]):
        self._total = total
        self._waiting: list[Codes] = []

    def add(self, codes: Codes) -> None:
        """Count samples in, whose codes have no gradient."""
        if codes.pattern is None or not has_sparse_product(codes.values):
            codes.add_gram(self._total)
            return
        self._waiting.append(codes)
        if sum(each.shape[0] for each in self._waiting) >= _SAMPLES_AT_ONCE:
            self._catch_up()

    @property
    def total(self) -> Float[Tensor, "d_sae d_sae"]:
        """The sum itself, in the upper triangle; what is below means nothing."""
        self._catch_up()
        return self._total

    def _catch_up(self) -> None:
        if self._waiting:
            codes, self._waiting = self._waiting, []
            pattern = Pattern.stacked([each.pattern for each in codes if each.pattern is not None])
            Codes(torch.cat([each.values for each in codes]), pattern).add_gram(self._total)

    def state_dict(self) -> dict[str, Any]:
        waiting = [
            {"values": each.values, "columns": each.pattern.columns, "offsets": each.pattern.offsets}
            for each in self._waiting
            if each.pattern is not None
        ]
        return {"total": self._total, "waiting": waiting}

    @classmethod
    def of_state(cls, state: dict[str, Any], device: torch.device) -> "GramSum":
        gram = cls(state["total"].to(device))
        for each in state["waiting"]:
            values, columns, offsets = (each[name].to(device) for name in ("values", "columns", "offsets"))
            gram._waiting.append(Codes(values, Pattern(columns, offsets, len(gram._total))))
        return gram

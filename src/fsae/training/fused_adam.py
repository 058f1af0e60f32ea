"""Adam in one pass over memory, whichever way round a matrix is held."""

from typing import Any

import torch
from torch import Tensor


class FusedAdam(torch.optim.Adam):
    """torch's fused Adam, which copies a matrix that is held transposed, as W_enc is, with its gradient and moments,
    and goes wrong where a gradient is held the other way round than its weight.

    It is handed matrices as they lie in memory: an update is made entry by entry, so the numbers are the same.
    """

    def __init__(self, parameters: Any, **options: Any):
        super().__init__(parameters, fused=True, **options)

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        has_complex = super()._init_group(group, *lists)
        weights, grads, *_ = lists
        for place, weight in enumerate(weights):
            if weight.dim() == 2 and weight.T.is_contiguous():
                for each in lists:
                    # Steps have no dimensions, and the largest moments are not kept.
                    if each and each[place].dim() == 2:
                        each[place] = each[place].T
            grads[place] = grads[place].contiguous()
        return has_complex

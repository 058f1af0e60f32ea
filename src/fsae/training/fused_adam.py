"""Adam in one pass over memory, for matrices in either memory order."""

from typing import Any

import torch
from torch import Tensor


class FusedAdam(torch.optim.Adam):
    """Fused Adam of torch, for matrices in either memory order.

    torch's own copies a matrix that is held transposed, as W_enc is, with its gradient and moments, and computes wrong
    updates if a gradient has another memory order than its weight. This one passes matrices in the order of memory: an
    update works entry by entry, so the numbers are the same.
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

"""Activations that are no numbers, found before they turn every metric into one."""

import torch
from torch import Tensor


def check_finite(activations: Tensor, where: str) -> None:
    """Raise ValueError naming how many activations are not finite and where the first one is; waits for the device.

    Args:
        activations: (vectors, d_in).
        where: what they are, to begin the message with.
    """
    bad = ~torch.isfinite(activations)
    if not bad.any():
        return
    vectors = bad.any(1)
    vector = int(vectors.nonzero()[0])
    dimension = int(bad[vector].nonzero()[0])
    raise ValueError(
        f"{where}: {int(bad.sum())} of {bad.numel()} activations are not finite, in {int(vectors.sum())} of "
        f"{bad.shape[0]} vectors (the first is {activations[vector, dimension].item()} in vector {vector}, dimension "
        f"{dimension}); a model in float16 may overflow, so try model.dtype=float32 or another site"
    )

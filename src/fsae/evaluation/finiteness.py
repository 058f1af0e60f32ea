"""The check for activations that are not finite, before they make every metric NaN."""

import torch
from torch import Tensor


def check_finite(activations: Tensor, where: str) -> None:
    """Raise ValueError if activations are not finite, with their number and the first one; wait for the device.

    Args:
        activations: (vectors, d_in).
        where: the beginning of the message, such as the number of the batch.
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

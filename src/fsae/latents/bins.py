"""Activation bins: half octaves of a code's absolute value, the same for all latents."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# The bins reach from 2^-32 to 2^16; the first and the last also have everything beyond.
FIRST_EXPONENT, LAST_EXPONENT = -32, 16
BINS = 2 * (LAST_EXPONENT - FIRST_EXPONENT)
EDGES = [2.0 ** (FIRST_EXPONENT + number / 2) for number in range(BINS + 1)]


def bin_of(strengths: Float[Tensor, " codes"]) -> Int[Tensor, " codes"]:
    """Return the bin of each positive number: floor(2 log2(number)), counted from `FIRST_EXPONENT`."""
    # Mantissa and exponent are exact, unlike a logarithm: the bin is the same on every device.
    mantissa, exponent = torch.frexp(strengths.float())
    half = 2 * (exponent.long() - 1 - FIRST_EXPONENT) + (mantissa >= 0.5**0.5).long()
    return half.clamp(0, BINS - 1)

"""Samples by hash: what is drawn depends on what it is, and not on the order in which it is met."""

import torch
from jaxtyping import Int
from torch import Tensor


def hash_of(ids: Int[Tensor, " ids"], seed: int) -> Int[Tensor, " ids"]:
    """Return 31 bits that look random for each number (SplitMix64's mixing function, Steele et al. 2014).

    The items with the smallest hashes are a uniform sample. Samples of parts of the data merge to the sample of the
    whole: take the smallest of both.
    """
    # torch has signed integers only: products wrap around, and the shift's copies of the sign are masked out.
    mixed = ids.to(torch.int64) * _signed(0x9E3779B97F4A7C15) + _signed(0xD1342543DE82EF95 * (seed + 1))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ _shifted(mixed, shift)) * _signed(factor)
    return _shifted(mixed ^ _shifted(mixed, 31), 33)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    return (numbers >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """Return the signed 64-bit integer with the bits of an unsigned one."""
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number

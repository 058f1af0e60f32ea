"""Random numbers that depend on names and counters only, not on earlier draws."""

from hashlib import blake2b

import torch


def seed_of(*drawn_for: object) -> int:
    """Return a seed for a purpose; every other purpose has another seed."""
    return int.from_bytes(blake2b(repr(drawn_for).encode(), digest_size=8).digest(), "big") % 2**63


def generator_for(*drawn_for: object) -> torch.Generator:
    """Return a new generator for a purpose."""
    return torch.Generator().manual_seed(seed_of(*drawn_for))

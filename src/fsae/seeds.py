"""Random numbers that depend on names and counters alone, and so on nothing that was drawn before."""

from hashlib import blake2b

import torch


def seed_of(*drawn_for: object) -> int:
    """A seed for this purpose, apart from that of any other."""
    return int.from_bytes(blake2b(repr(drawn_for).encode(), digest_size=8).digest(), "big") % 2**63


def generator_for(*drawn_for: object) -> torch.Generator:
    """A generator for this purpose, at its beginning."""
    return torch.Generator().manual_seed(seed_of(*drawn_for))

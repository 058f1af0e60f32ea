"""Vectors of sparse features, and settings under which training on them takes a second."""

from typing import Any

import torch
from torch import Tensor

D_IN = 16

SHORT: dict[str, Any] = {"samples": 6_000, "batch_size": 200, "overrides": ["trainer.log_every=5"]}


def sparse_features(count: int = 3000, seed: int = 0) -> Tensor:
    """(count, 16) vectors of 24 features, with 2 of them on per vector on average."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(24, D_IN, generator=generator), dim=1)
    on = torch.rand(count, 24, generator=generator) < 2 / 24
    return (on * torch.rand(count, 24, generator=generator)) @ directions + 0.5

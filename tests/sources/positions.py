"""Checks of positions in a stream: every source must continue from a saved one."""

from collections.abc import Callable
from itertools import islice

import torch

from fsae.sources.source import Source


def check_goes_on(opened: Callable[[], Source], batch_size: int, before: int = 4, after: int = 3) -> None:
    """A fresh source in another's position gives the batches that would have come next there."""
    whole = list(islice(opened().batches(batch_size), before + after))
    first = opened()
    for _ in islice(first.batches(batch_size), before):
        pass
    second = opened()
    second.load_state_dict(first.state_dict())
    for batch, wanted in zip(islice(second.batches(batch_size), after), whole[before:], strict=True):
        assert torch.equal(batch.inputs, wanted.inputs)
        assert torch.equal(batch.targets, wanted.targets)

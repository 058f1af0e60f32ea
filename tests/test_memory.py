"""Memory that is kept while training and given back afterwards."""

import gc
import platform

import psutil
import pytest
import torch

from fsae.memory import freed_memory_kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc")
def test_freed_memory_is_kept_and_given_back_at_the_end():
    process = psutil.Process()
    size = 200_000_000

    def grown(before: int) -> float:
        """Megabytes; one tensor is 200."""
        gc.collect()
        return (process.memory_info().rss - before) / 1e6

    before = process.memory_info().rss
    torch.ones(size, dtype=torch.uint8)
    assert grown(before) < 50
    with freed_memory_kept():
        torch.ones(size, dtype=torch.uint8)
        assert grown(before) > 100
    assert grown(before) < 50


def test_errors_pass_through():
    with pytest.raises(ValueError, match="this"), freed_memory_kept():
        raise ValueError("this")

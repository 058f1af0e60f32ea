"""Memory that is kept during training and released afterwards."""

import gc
import platform

import psutil
import pytest
import torch

from fsae.memory import CPU, free_bytes, freed_memory_kept, require_free


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc")
def test_freed_memory_is_kept_and_released_at_the_end():
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


def test_memory_that_is_not_free_is_refused_with_a_remedy():
    require_free(1000, CPU, "weights", "lower arch.d_sae")
    with pytest.raises(ValueError, match=r"weights take 2000000\.0 GB, and [\d.]+ GB of memory are free; lower arch"):
        require_free(2 * 10**15, CPU, "weights", "lower arch.d_sae")
    assert 0 < free_bytes() < 10**15


def test_errors_pass_through():
    with pytest.raises(ValueError, match="this"), freed_memory_kept():
        raise ValueError("this")

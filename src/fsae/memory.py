"""Memory: what is free, and what the process frees and keeps for the next step, which needs as much again."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

# Parameters of glibc's mallopt, each with its value for a while of training and its usual one.
_TRIM_THRESHOLD = (-1, 2**31 - 1, 2**17)
_TOP_PAD = (-2, 2**26, 2**17)
_MMAP_MAX = (-4, 0, 2**16)


CPU = torch.device("cpu")
# The end of a remedy, if the memory is for autoencoders that are trained side by side.
FEWER_AUTOENCODERS = "or lower population.size or hydra.launcher.max_jobs, for fewer autoencoders at a time"


def free_bytes(device: torch.device = CPU) -> int:
    """Return how many bytes are free for a device's tensors."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def require_free(wanted: int, device: torch.device, what: str, remedy: str) -> None:
    """Raise ValueError if `wanted` bytes are not free for a device's tensors.

    Args:
        wanted: bytes.
        device: where the tensors are.
        what: what takes the memory, in the plural.
        remedy: what people can do.
    """
    free = free_bytes(device)
    if wanted > free:
        raise ValueError(f"{what} take {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free; {remedy}")


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C library keep freed memory rather than give it back to the system; at the end it is given back.

    It would give back every tensor above 32 MB at once, and its successor in the next step would come page by page,
    each cleared by the system: with weights of that size a fifth of a CPU's training step. Where the C library is
    another one than glibc, nothing is done.
    """
    library = ctypes.CDLL(None)
    known = hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
    settings = (_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX) if known else ()
    try:
        for parameter, kept, _ in settings:
            library.mallopt(parameter, kept)
        yield
    finally:
        for parameter, _, usual in settings:
            library.mallopt(parameter, usual)
        if known:
            library.malloc_trim(0)

"""Memory: checks of free memory, and a setting that keeps freed memory in the process between steps."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

# Parameters of glibc's mallopt, each with its value during training and its default.
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
    """Make the C library keep freed memory until the block ends, instead of returning it to the system.

    The C library would return every tensor above 32 MB at once, and get the next step's tensor page by page, each
    cleared by the system. With weights of that size this takes a fifth of a CPU's training step. Nothing is done if the
    C library is not glibc.
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

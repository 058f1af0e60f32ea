"""Memory of the process: what is freed is kept for the next step, which needs as much again."""

import ctypes

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Let the C library keep freed memory rather than give it back to the system.

    It would give back every tensor above 32 MB at once, and its successor in the next step would come page by page,
    each cleared by the system: with weights of that size a fifth of a CPU's training step. Where the C library is
    another one than glibc, nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 2**26)

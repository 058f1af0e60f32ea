"""Threads that work on the members of a population side by side."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Threads:
    """Threads that process several items at the same time, each on its own share of a CPU's cores.

    Processing one autoencoder after the other on all cores takes longer: n operations on one core each are faster than
    n operations in turn on n cores. The number of cores of an operation may change the last bits of its result.
    Therefore a population has the same number of threads when it is resumed, and runs that share a process have none.

    Args:
        size: how many items are processed at the same time; 1 to process them in turn, on all cores.

    Attributes:
        cores_each: the cores per item.
    """

    def __init__(self, size: int = 1):
        self._size, self._cores = size, torch.get_num_threads()
        self.cores_each = self._cores // size
        self._threads = ThreadPoolExecutor(size, "member", torch.set_num_threads, (self.cores_each,))
        if size > 1:
            # They begin here: setting a thread's number of cores also sets it for threads that begin later.
            together = threading.Barrier(size)
            wait([self._threads.submit(together.wait) for _ in range(size)])
            torch.set_num_threads(self._cores)

    def map(self, action: Callable[[Item], Result], items: Sequence[Item], alone: bool = True) -> list[Result]:
        """Return the results of an action for each item, in order.

        If it fails for some items, the first error is raised once all threads have finished.

        Args:
            action: the action.
            items: the items.
            alone: whether the last items, if they are fewer than the threads, are processed in turn on all cores. Pass
                False if the action uses one core in any case.
        """
        rest = len(items) if self._size == 1 else len(items) % self._size if alone else 0
        shared = len(items) - rest
        doing = []
        if shared:
            # Part of this setting belongs to the process, not to a thread.
            torch.set_num_threads(self.cores_each)
            try:
                doing = [self._threads.submit(action, item) for item in items[:shared]]
                wait(doing)
            finally:
                torch.set_num_threads(self._cores)
        return [each.result() for each in doing] + [action(item) for item in items[shared:]]

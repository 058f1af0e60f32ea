"""Threads among which the members of a population are shared out."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Threads:
    """Does something for several items at once, each on its own share of a CPU's cores.

    One autoencoder after the other on all cores takes longer: no operation of a step is as fast on n cores as n of them
    on one each. How many cores an operation has may show in its last bits, so a population has as many threads whenever
    it goes on, and runs that share a process for a while have none.

    Args:
        size: how many items at a time; 1 for one after the other, on all cores.

    Attributes:
        cores_each: an item's share of the cores.
    """

    def __init__(self, size: int = 1):
        self._size, self._cores = size, torch.get_num_threads()
        self.cores_each = self._cores // size
        self._threads = ThreadPoolExecutor(size, "member", torch.set_num_threads, (self.cores_each,))
        if size > 1:
            # They begin now and here: setting a thread's number also sets that of threads which are yet to begin.
            together = threading.Barrier(size)
            wait([self._threads.submit(together.wait) for _ in range(size)])
            torch.set_num_threads(self._cores)

    def map(self, action: Callable[[Item], Result], items: Sequence[Item], alone: bool = True) -> list[Result]:
        """What the action returns of each, in order, or the first of their errors, when nobody is at it any more.

        Args:
            action: what is done.
            items: for which.
            alone: those that would not keep all cores busy go one after the other, on all cores; not where the action
                uses one core whatever there are.
        """
        rest = len(items) if self._size == 1 else len(items) % self._size if alone else 0
        shared = len(items) - rest
        doing = []
        if shared:
            # Part of it is the process's, not a thread's.
            torch.set_num_threads(self.cores_each)
            try:
                doing = [self._threads.submit(action, item) for item in items[:shared]]
                wait(doing)
            finally:
                torch.set_num_threads(self._cores)
        return [each.result() for each in doing] + [action(item) for item in items[shared:]]

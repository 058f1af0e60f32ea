"""Threads among which the members of a population are shared out."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from fsae.training.learner import Learner

Item = TypeVar("Item")
Result = TypeVar("Result")

# Multiplications of a step's encoder product, from which threads are worth it: below, a step is mostly Python's work,
# which threads do one at a time.
_WORTH_A_THREAD = 2**26


class Crew:
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
        self._cores = torch.get_num_threads()
        self.cores_each = self._cores // size
        self._threads = ThreadPoolExecutor(size, "member", torch.set_num_threads, (self.cores_each,))
        self._alone = size == 1

    @classmethod
    def of(cls, members: Sequence[Learner]) -> "Crew":
        """Of the best size for the steps of these."""
        sizes = [member.settings.batch_size * member.autoencoder.W_enc.numel() for member in members]
        on_cpu = all(member.autoencoder.W_enc.device.type == "cpu" for member in members)
        worth_it = on_cpu and min(sizes) >= _WORTH_A_THREAD
        return cls(min(len(members), torch.get_num_threads()) if worth_it else 1)

    def map(self, action: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """What the action returns of each, in order, or the first of their errors, once all are done."""
        if self._alone or len(items) < 2:
            return [action(item) for item in items]
        # Part of it is the process's, not a thread's.
        torch.set_num_threads(self.cores_each)
        try:
            doing = [self._threads.submit(action, item) for item in items]
            wait(doing)
            return [each.result() for each in doing]
        finally:
            torch.set_num_threads(self._cores)

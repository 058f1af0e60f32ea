"""Workers: processes that read parts of the data at the same time, each with a language model of its own."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.latents.contexts import Contexts
from fsae.latents.scan import scan
from fsae.latents.survey import Survey
from fsae.latents.unfinished import Unfinished

# Seconds between two looks at the workers.
_PAUSE = 0.5


@dataclass(frozen=True, eq=False)
class Share:
    """The share of one worker.

    Attributes:
        name: of the files in which it keeps its surveys.
        parts: numbers of the parts that it reads.
        open_contexts: opens the data in the worker's process.
        dictionaries: of each run, the autoencoders.
        surveys: of each run, empty surveys.
        unfinished: of each run, where its surveys are kept.
        threads: of the worker.
    """

    name: str
    parts: Sequence[int]
    open_contexts: Callable[[], Contexts]
    dictionaries: Sequence[Sequence[Autoencoder]]
    surveys: Sequence[Sequence[Survey]]
    unfinished: Sequence[Unfinished]
    threads: int


def work(shares: Sequence[Share], heartbeat: Callable[[], None], show: Callable[[int], None]) -> None:
    """Run one process per share until all are done.

    Args:
        shares: what each process does.
        heartbeat: called twice per second; may raise, which ends the processes. Their complete parts are kept.
        show: called with the number of positions that the workers have read since the last call.

    Raises:
        Exception: of a worker.
        RuntimeError: a worker ended early. In both cases its complete parts are kept.
    """
    context = multiprocessing.get_context("spawn")
    read = [context.Value("q", 0) for _ in shares]
    errors = context.SimpleQueue()
    workers = [
        context.Process(target=_read_parts, args=(share, counter, errors), name=share.name, daemon=True)
        for share, counter in zip(shares, read, strict=True)
    ]
    shown = 0
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            workers[0].join(_PAUSE)
            heartbeat()
            total = sum(counter.value for counter in read)
            show(total - shown)
            shown = total
            _check(workers, errors)
        _check(workers, errors)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
            worker.join()


def _check(workers: Sequence[BaseProcess], errors: "SimpleQueue[Exception]") -> None:
    if not errors.empty():
        raise errors.get()
    for worker in workers:
        if worker.exitcode not in (None, 0):
            raise RuntimeError(
                f"worker {worker.name} (process {worker.pid}) ended with status {worker.exitcode}; its complete parts "
                "are kept, and the same command continues"
            )


def _read_parts(share: Share, read: Any, errors: "SimpleQueue[Exception]") -> None:
    # A signal to the group is for the parent, which then ends the workers.
    os.setpgid(0, 0)
    try:
        _read_all(share, read)
    except (OSError, ValueError) as error:
        # These are for people; of others the traceback is printed.
        errors.put(error)


def _read_all(share: Share, read: Any) -> None:
    parent = os.getppid()
    torch.set_num_threads(share.threads)
    contexts = share.open_contexts()

    def beat(positions: int) -> None:
        read.value += positions
        if os.getppid() != parent:
            # The parent was killed, and another process may be at the same files.
            os._exit(1)

    autoencoders = [each for own in share.dictionaries for each in own]
    surveys = [each for own in share.surveys for each in own]
    for part in share.parts:
        scan(part, contexts.blocks(part), autoencoders, surveys, beat)
        for unfinished, own in zip(share.unfinished, share.surveys, strict=True):
            unfinished.save(own, share.name)

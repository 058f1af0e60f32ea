"""One library's worker: it prints its versions, then answers each command on stdin with a line of JSON.

It runs with the Python of that library, in which fsae is not installed.

step       make one optimiser step on the next batch
time       the same: its seconds
cpu_time   the same: the seconds that the process itself computed
measure    squared error (mean over vectors), fvu and l0 on the held-out vectors
memory     peak memory of training in bytes, minus the memory in use before the autoencoder was built
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
import torch._dynamo  # Otherwise the first optimiser imports it, and training's memory includes it.
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.peers.job import Job

MEASURED_AT_ONCE = 1024


class Training(Protocol):
    """A library's training of a job from starting weights."""

    def step(self, x: Tensor, y: Tensor, number: int) -> None:
        """Make one optimiser step on a batch whose reconstruction should be y; the number counts from 1."""
        ...

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstructions and the total number of active codes."""
        ...


class Worker:
    """A running job."""

    def __init__(self, job: Job):
        torch.set_num_threads(job.threads)
        library = importlib.import_module(f"benchmarks.peers.{job.library}_steps")
        self.job, self.steps = job, 0
        self.vectors, self.held_out = (_pairs(_read(path, job), job) for path in (job.vectors, job.held_out))
        # Pages of a mapped file count as the process's memory once they are read: read them before training.
        for tensor in (*self.vectors, *self.held_out):
            tensor.sum()
        self.before = memory(job.device, "VmRSS")
        self.versions = {job.library: version(library.DISTRIBUTION), "torch": torch.__version__}
        self.training: Training = library.Training(job, _read(job.weights, job, job.device))

    def step(self) -> None:
        self._step(*self._next_batch())

    def time(self, clock: Callable[[], float] = time.perf_counter) -> float:
        if self.job.device != "cpu":
            # Memory was released after the last command; the timed step must find it allocated, as in training.
            self.step()
        x, y = self._next_batch()
        self._wait()
        began = clock()
        self._step(x, y)
        self._wait()
        return clock() - began

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        x, y = self.vectors
        begin = self.steps % (len(x) // self.job.batch) * self.job.batch
        batch = slice(begin, begin + self.job.batch)
        return x[batch].to(self.job.device), y[batch].to(self.job.device)

    def _step(self, x: Tensor, y: Tensor) -> None:
        self.steps += 1
        self.training.step(x, y, self.steps)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        squared = active = 0.0
        inputs, targets = self.held_out
        # Small parts, so that training has the peak of the memory.
        for x, y in zip(inputs.split(MEASURED_AT_ONCE), targets.split(MEASURED_AT_ONCE), strict=True):
            reconstruction, codes_on = self.training.forward(x.to(self.job.device))
            squared += (reconstruction.cpu().to(y) - y).double().square().sum().item()
            active += codes_on.item()
        variance = (targets - targets.mean(0)).double().square().sum().item()
        count = len(targets)
        return {"error": squared / count, "fvu": squared / variance, "l0": active / count}

    def memory(self) -> int:
        return memory(self.job.device, "VmHWM") - self.before

    def _wait(self) -> None:
        if self.job.device != "cpu":
            torch.cuda.synchronize()


def _read(path: str, job: Job, device: str = "cpu") -> dict[str, Tensor]:
    """Return a file's tensors in the job's type."""
    return {name: tensor.to(job.dtype) for name, tensor in load_file(path, device=device).items()}


def _pairs(tensors: dict[str, Tensor], job: Job) -> tuple[Tensor, Tensor]:
    """Return vectors and what their reconstructions should be."""
    return tensors["x"], tensors["y" if job.transcodes else "x"]


def memory(device: str, field: str) -> int:
    """Return the bytes of the process, or torch's peak on the GPU; `field` as in /proc/self/status."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def main() -> None:
    # Libraries print to stdout, so answers get a stream of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    worker = Worker(Job(**json.loads(sys.argv[1])))
    answer(worker.versions)
    commands = {
        "step": worker.step,
        "time": worker.time,
        "cpu_time": partial(worker.time, time.process_time),
        "measure": worker.measure,
        "memory": worker.memory,
    }
    for line in sys.stdin:
        result = commands[line.strip()]()
        if worker.job.device != "cpu":
            # The other processes need the free memory.
            torch.cuda.empty_cache()
        answer(result)


if __name__ == "__main__":
    main()

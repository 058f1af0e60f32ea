"""One library at its job: says its versions, then answers each word on stdin with a line of JSON.

It is run with that library's own Python, which knows nothing of ours.

step       make one optimiser step on the next batch
time       the same: its seconds
measure    squared error (mean over vectors), fvu and l0 on the held-out vectors
memory     bytes that training has taken at its peak, beyond what was there before the autoencoder was built
"""

import importlib
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
import torch._dynamo  # Optimisers import it when the first of them is made: that is not what training takes.
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.peers.job import Job

MEASURED_AT_ONCE = 1024


class Training(Protocol):
    """What a library's module makes of a job and starting weights."""

    def step(self, x: Tensor, number: int) -> None:
        """One optimiser step on a batch; the number counts from 1."""
        ...

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions, and how many codes are on in all."""
        ...


class Worker:
    """A job under way."""

    def __init__(self, job: Job):
        torch.set_num_threads(job.threads)
        library = importlib.import_module(f"benchmarks.peers.{job.library}_steps")
        self.job, self.steps = job, 0
        self.vectors = load_file(job.vectors)["x"]
        self.held_out = load_file(job.held_out)["x"]
        # Pages of a mapped file count as the process's memory once they are read: not during training then.
        for tensor in (self.vectors, self.held_out):
            tensor.sum()
        self.before = memory(job.device, "VmRSS")
        self.versions = {job.library: version(library.DISTRIBUTION), "torch": torch.__version__}
        self.training: Training = library.Training(job, load_file(job.weights, device=job.device))

    def step(self) -> None:
        self._step(self._next_batch())

    def time(self) -> float:
        if self.job.device != "cpu":
            # Memory was given back after the last word; the step that is timed finds it at hand, as in training.
            self.step()
        x = self._next_batch()
        self._wait()
        began = time.perf_counter()
        self._step(x)
        self._wait()
        return time.perf_counter() - began

    def _next_batch(self) -> Tensor:
        batches = len(self.vectors) // self.job.batch
        begin = self.steps % batches * self.job.batch
        return self.vectors[begin : begin + self.job.batch].to(self.job.device)

    def _step(self, x: Tensor) -> None:
        self.steps += 1
        self.training.step(x, self.steps)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        squared = active = 0.0
        # Small parts, so that it is training that takes the most memory.
        for x in self.held_out.split(MEASURED_AT_ONCE):
            reconstruction, codes_on = self.training.forward(x.to(self.job.device))
            squared += (reconstruction.float().cpu() - x).double().square().sum().item()
            active += codes_on.item()
        variance = (self.held_out - self.held_out.mean(0)).double().square().sum().item()
        count = len(self.held_out)
        return {"error": squared / count, "fvu": squared / variance, "l0": active / count}

    def memory(self) -> int:
        return memory(self.job.device, "VmHWM") - self.before

    def _wait(self) -> None:
        if self.job.device != "cpu":
            torch.cuda.synchronize()


def memory(device: str, field: str) -> int:
    """Bytes of the process, or those that torch has had on the GPU; `field` as in /proc/self/status."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def main() -> None:
    # Libraries print; what is on stdout by then is for people.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    worker = Worker(Job(**json.loads(sys.argv[1])))
    answer(worker.versions)
    commands = {"step": worker.step, "time": worker.time, "measure": worker.measure, "memory": worker.memory}
    for line in sys.stdin:
        result = commands[line.strip()]()
        if worker.job.device != "cpu":
            # The others' turns need what is free.
            torch.cuda.empty_cache()
        answer(result)


if __name__ == "__main__":
    main()

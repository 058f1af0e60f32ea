"""Libraries measured side by side: the same weights, the same batches, in turns."""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.peers.environment import CannotInstallError, python_of
from benchmarks.peers.fsae_steps import write_weights
from benchmarks.peers.job import Job
from benchmarks.peers.process import Process, StoppedError

ARCHITECTURES = ("standard", "gated", "jumprelu", "topk", "batch_topk")
RECTIFIED = ("standard", "gated", "jumprelu")
PEERS = ("sae_lens", "dictionary_learning", "sparsify")
OURS: tuple[str, ...] = ("fp32", "bf16")
# Steps after which all must have the same error; they warm up as well.
CHECKED_STEPS = 3
BATCHES = 4


@dataclass
class Measured:
    """What came of a job.

    Attributes:
        job: what was asked for.
        versions: of the library and torch.
        before, after: measurements at the start and after the checked steps.
        seconds: of each timed step.
        memory: bytes at the peak.
        failure: why there is none of this, where there is none.
    """

    job: Job
    versions: dict[str, str] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    failure: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Row:
    """A peer in one mode beside ours under its rules, from the same weights."""

    theirs: Measured
    ours: dict[str, Measured]

    @property
    def counterpart(self) -> Measured:
        """Ours in the precision that the peer computes in."""
        return self.ours["bf16" if self.theirs.job.mode in ("bf16", "compiled") else "fp32"]

    @property
    def difference(self) -> float:
        """Of the errors after the checked steps, relative."""
        return abs(self.theirs.after["error"] / self.counterpart.after["error"] - 1)


def write_vectors(job: Job) -> torch.Tensor:
    """Write Gaussian vectors to train on and to measure on, and return the former."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(BATCHES * job.batch, job.d_in, generator=generator)
    save_file({"x": vectors}, Path(job.vectors))
    save_file({"x": torch.randn(job.batch, job.d_in, generator=generator)}, Path(job.held_out))
    return vectors


def modes_of(peer: str, architecture: str, device: str, dense: bool) -> list[str]:
    """Ways to compute of a peer, the default first; of dense steps only the faster one is asked for."""
    on_gpu = device != "cpu"
    if peer == "sparsify":
        return ["fp32"] if architecture == "topk" else []
    if peer == "dictionary_learning":
        return [] if dense else ["fp32", "bf16"] if on_gpu else ["fp32"]
    if dense:
        return ["bf16", "compiled"] if on_gpu else ["bf16"]
    return ["fp32", "bf16", *(["sparse"] if architecture == "topk" else []), *(["compiled"] if on_gpu else [])]


def compare(base: Job, peer: str, architecture: str, dense: bool, vectors: torch.Tensor, repeats: int) -> list[Row]:
    """Ours in both precisions and a peer in all its modes, in turns; no rows where it has no such architecture.

    Args:
        base: shapes and files.
        peer: against which.
        architecture: of what.
        dense: from biases of zero, where half of the codes are on.
        vectors: for the starting weights.
        repeats: timed steps of each.
    """
    modes = modes_of(peer, architecture, base.device, dense)
    if not modes:
        return []
    density = None if dense else base.k / base.d_sae
    common = replace(base, rules=peer, architecture=architecture, density=density)
    write_weights(common, vectors)
    jobs = [replace(common, library="fsae", mode=mode) for mode in OURS]
    jobs += [replace(common, library=peer, mode=mode) for mode in modes]
    measured = in_turns(jobs, repeats)
    ours = dict(zip(OURS, measured, strict=False))
    return [Row(theirs, ours) for theirs in measured[len(OURS) :]]


def in_turns(jobs: Sequence[Job], repeats: int) -> list[Measured]:
    """Start all, check them, then time one step of each in turn, to and fro."""
    all_measured = [Measured(job) for job in jobs]
    with ExitStack() as stack:
        running: list[tuple[Measured, Process]] = []
        for measured in all_measured:
            try:
                process = stack.enter_context(Process(measured.job, python_of(measured.job.library)))
                measured.versions = process.versions
                measured.before = process.measure()
                for _ in range(CHECKED_STEPS):
                    process.step()
                measured.after = process.measure()
                running.append((measured, process))
            except (CannotInstallError, StoppedError) as error:
                measured.failure = str(error)
        for turn in range(repeats):
            for measured, process in running[:: 1 if turn % 2 == 0 else -1]:
                measured.seconds.append(process.step())
        for measured, process in running:
            measured.memory = process.memory()
    for measured in all_measured:
        if measured.failure and measured.job.library == "fsae":
            raise SystemExit(measured.failure)
    return all_measured


def growth(base: Job, widths: Sequence[int], repeats: int) -> dict[str, dict[int, float]]:
    """Median seconds of our topk step by precision and d_sae."""
    jobs = []
    for d_sae in widths:
        job = replace(base, library="fsae", rules="sae_lens", architecture="topk", d_sae=d_sae)
        job = replace(job, weights=str(Path(base.weights).with_name(f"weights-{d_sae}.safetensors")))
        write_weights(job, torch.zeros(1, base.d_in))
        jobs += [replace(job, mode=mode) for mode in OURS]
    seconds: dict[str, dict[int, float]] = {mode: {} for mode in OURS}
    for measured in in_turns(jobs, repeats):
        seconds[measured.job.mode][measured.job.d_sae] = measured.median
    return seconds

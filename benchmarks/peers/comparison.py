"""Libraries measured side by side: the same weights, the same batches, in turns."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
# How far from ours a peer may then be and still count as computing the same: its error by this share of what the
# checked steps changed, its l0 by this share of ours.
BOUND = 0.02
# Each library rounds other products to bfloat16 (sparse steps of ours the encoder's alone), which tells which codes are
# chosen, and Adam's first steps are as long for a gradient that is left of rounding as for any other: 0.010 was
# measured at 768 -> 12,288, 0.11 (gated) at 256 -> 2,048. The strict check is that of the same peer in fp32.
BOUND_BF16 = 0.3
# Where a peer's training differs from ours under its rules, by design, and the bound there: about three times what was
# measured at 768 -> 12,288.
NOTES = {
    ("sae_lens", "jumprelu"): ("it learns thresholds, ours their logarithms", 0.025),
    ("dictionary_learning", "jumprelu"): (
        "it learns thresholds, ours their logarithms; its sparsity term sees only the half of the window above a "
        "threshold",
        0.025,
    ),
    ("sparsify", "topk"): ("its loss is the fvu, so its gradients are smaller and Adam's epsilon weighs more", BOUND),
}


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
    def precision(self) -> str:
        """What the peer computes in."""
        return "bf16" if self.theirs.job.mode in ("bf16", "compiled") else "fp32"

    @property
    def counterpart(self) -> Measured:
        """Ours in that precision."""
        return self.ours[self.precision]

    @property
    def known(self) -> tuple[str | None, float]:
        """In what its training differs from ours by design, and how far the two may be apart."""
        note, bound = NOTES.get((self.theirs.job.library, self.theirs.job.architecture), (None, BOUND))
        return note, max(bound, BOUND_BF16) if self.precision == "bf16" else bound

    @property
    def difference(self) -> float:
        """Of the errors after the checked steps, over what these steps changed: of the whole error that is little."""
        ours = self.counterpart
        return abs(self.theirs.after["error"] - ours.after["error"]) / abs(ours.before["error"] - ours.after["error"])

    @property
    def failure(self) -> str | None:
        """Why its times are not to be compared with ours, if so."""
        if self.theirs.failure:
            return self.theirs.failure
        _, bound = self.known
        l0 = abs(self.theirs.after["l0"] / self.counterpart.after["l0"] - 1)
        # What is not a number is not within a bound either.
        if self.difference <= bound and l0 <= bound:
            return None
        return (
            f"computes something else: after {CHECKED_STEPS} steps its error differs by {self.difference:.2g} of what "
            f"these changed, its l0 by {l0:.2g}, where {bound:g} is allowed"
        )


def write_vectors(job: Job) -> torch.Tensor:
    """Write Gaussian vectors to train on and to measure on, and return others to start from.

    At the start one of the latter lies exactly at each latent's limit: in training, rounding alone would tell whether
    it is on.
    """
    generator = torch.Generator().manual_seed(1)
    save_file({"x": torch.randn(BATCHES * job.batch, job.d_in, generator=generator)}, Path(job.vectors))
    save_file({"x": torch.randn(job.batch, job.d_in, generator=generator)}, Path(job.held_out))
    return torch.randn(BATCHES * job.batch, job.d_in, generator=generator)


def modes_of(peer: str, architecture: str, device: str, dense: bool) -> list[str]:
    """Ways to compute of a peer, the default first; of dense steps only the faster one is asked for."""
    on_gpu = device != "cpu"
    if peer == "sparsify":
        # On a GPU it turns autocast on by itself.
        return ["bf16" if on_gpu else "fp32"] if architecture == "topk" else []
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
        vectors: for the starting weights; none that is trained on.
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
    """Start all, check them, then time one step of each in turn, to and fro.

    One after the other where a GPU's memory would be half full of what they keep between steps.
    """
    all_measured = [Measured(job) for job in jobs]
    # Encoder and decoder, their gradients, and the optimiser's two moments, in float32.
    kept = sum(2 * 4 * 4 * job.d_in * job.d_sae for job in jobs)
    at_once = len(jobs) if jobs[0].device == "cpu" or 2 * kept < torch.cuda.mem_get_info()[0] else 1
    for first in range(0, len(jobs), at_once):
        _measure(all_measured[first : first + at_once], repeats)
    for measured in all_measured:
        if measured.failure and measured.job.library == "fsae":
            raise SystemExit(measured.failure)
    return all_measured


def _measure(all_measured: Sequence[Measured], repeats: int) -> None:
    with ExitStack() as stack:
        running: list[tuple[Measured, Process]] = []
        for measured in all_measured:
            with _stopping(measured):
                process = stack.enter_context(Process(measured.job, python_of(measured.job.library)))
                measured.versions = process.versions
                measured.before = process.measure()
                for _ in range(CHECKED_STEPS):
                    process.step()
                measured.after = process.measure()
                running.append((measured, process))
        for turn in range(repeats):
            for measured, process in running[:: 1 if turn % 2 == 0 else -1]:
                with _stopping(measured):
                    measured.seconds.append(process.time())
        for measured, process in running:
            with _stopping(measured):
                measured.memory = process.memory()


@contextmanager
def _stopping(measured: Measured) -> Iterator[None]:
    """One that stops, or cannot begin, is the failure of its job: the others go on."""
    try:
        yield
    except (CannotInstallError, StoppedError) as error:
        measured.failure = str(error)


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

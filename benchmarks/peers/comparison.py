"""Libraries compared with each other: the same weights, the same batches, interleaved steps."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.peers.environment import CannotInstallError, python_of
from benchmarks.peers.fsae_steps import targets_of, write_weights
from benchmarks.peers.job import Job
from benchmarks.peers.process import Process, StoppedError

ARCHITECTURES = ("standard", "gated", "jumprelu", "topk", "batch_topk")
# Other losses, layouts and encoders, and the peers that have them.
RECIPES = {
    "matryoshka": ("sae_lens", "dictionary_learning"),
    "p_anneal": ("dictionary_learning",),
    "transcoder": ("sparsify",),
    "skip_transcoder": ("sparsify",),
    "matching_pursuit": ("sae_lens",),
}
RECTIFIED = ("standard", "gated", "jumprelu")
PEERS = ("sae_lens", "dictionary_learning", "sparsify")
OURS: tuple[str, ...] = ("fp32", "bf16")
# Steps after which all must have the same error; they are also the warm-up.
CHECKED_STEPS = 3
BATCHES = 4
# The same before the first step, relative to fsae's. With bfloat16, rounding decides which codes are chosen.
START = {"fp64": 1e-9, "fp32": 1e-4, "bf16": 0.02}
# The difference from fsae up to which a peer counts as computing the same: in its error, this share of the change in
# the checked steps; in its l0, this share of fsae's.
BOUND = 0.02
# Each library rounds other products to bfloat16 (fsae's sparse steps the encoder's alone), which decides which codes
# are chosen, and Adam's first steps are as long for a gradient of rounding errors as for any other: 0.010 was measured
# at 768 -> 12,288, 0.11 (gated) at 256 -> 2,048. The same peer in fp32 is the strict check.
BOUND_ROUNDED = 0.3
# Pursuit chooses k times per sample, and each choice decides which come later, so that float32's rounding, too, decides
# which codes are chosen: with inputs changed by 1e-7 of their size, fsae differs from itself by 0.036 at 768 -> 12,288,
# batch 1,024, k 64. Its strict check is made in float64, apart from the steps that are timed.
CHECKED_IN_FLOAT64 = ("matching_pursuit",)
BOUND_FP64 = 1e-4
FVU = "its loss is the fvu, so its gradients are smaller and Adam's epsilon weighs more"
# Differences by design between a peer's training and fsae's under its rules, and the bound for them: about three times
# the difference that was measured at 768 -> 12,288.
NOTES = {
    ("sae_lens", "jumprelu"): ("it learns thresholds, fsae their logarithms", 0.025),
    ("dictionary_learning", "jumprelu"): (
        "it learns thresholds, fsae their logarithms; its sparsity term sees only the half of the window above a "
        "threshold",
        0.025,
    ),
    ("sae_lens", "matching_pursuit"): (
        "its rows are kept at norm 1 here, as fsae's are; by itself it lets them change; the difference is that of the "
        "same steps in float64, because float32's rounding decides which codes are chosen",
        BOUND,
    ),
    **{("sparsify", name): (FVU, BOUND) for name in ("topk", "transcoder", "skip_transcoder")},
}


@dataclass
class Measured:
    """The measurements of a job.

    Attributes:
        job: the job.
        versions: of the library and torch.
        before, after: measurements at the start and after the checked steps.
        seconds: of each timed step.
        memory: bytes at the peak.
        failure: the reason if the job has no measurements.
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
    """A peer in one mode compared with fsae under the peer's rules, from the same weights.

    `exact` has the same steps in float64, not timed, if the check of those in float32 is not strict.
    """

    theirs: Measured
    ours: dict[str, Measured]
    exact: "Row | None" = None

    @property
    def precision(self) -> str:
        """The precision of the peer."""
        return {"bf16": "bf16", "compiled": "bf16", "fp64": "fp64"}.get(self.theirs.job.mode, "fp32")

    @property
    def counterpart(self) -> Measured:
        """fsae's measurements in that precision."""
        return self.ours[self.precision]

    @property
    def known(self) -> tuple[str | None, float]:
        """The difference by design between the peer's training and fsae's, and the bound for it."""
        note, bound = NOTES.get((self.theirs.job.library, self.theirs.job.architecture), (None, BOUND))
        if self.precision == "fp64":
            return note, BOUND_FP64
        return note, max(bound, BOUND_ROUNDED) if self.precision == "bf16" or self.exact else bound

    @property
    def difference(self) -> float:
        """Difference of the errors after the checked steps, relative to the change of the error in these steps."""
        ours = self.counterpart
        return abs(self.theirs.after["error"] - ours.after["error"]) / abs(ours.before["error"] - ours.after["error"])

    @property
    def failure(self) -> str | None:
        """The reason if the peer's times cannot be compared with fsae's."""
        if self.theirs.failure:
            return self.theirs.failure
        if self.exact and self.exact.failure:
            return self.exact.failure
        start = max(abs(self.theirs.before[name] / self.counterpart.before[name] - 1) for name in ("error", "l0"))
        # NaN is in no bound.
        if not start <= START[self.precision]:
            return f"computes something else: at the start its error or l0 differs by {start:.2g} in {self.precision}"
        _, bound = self.known
        l0 = abs(self.theirs.after["l0"] / self.counterpart.after["l0"] - 1)
        if self.difference <= bound and l0 <= bound:
            return None
        return (
            f"computes something else: after {CHECKED_STEPS} steps in {self.precision} its error differs by "
            f"{self.difference:.2g} of what these changed, its l0 by {l0:.2g}, beyond the bound of {bound:g}"
        )


def write_vectors(job: Job) -> torch.Tensor:
    """Write Gaussian vectors and a transcoder's targets for training and for measuring, and return others for the
    starting weights.

    At the start one of the latter is exactly at each latent's limit: in training, rounding alone would decide whether
    the latent is active.
    """
    generator = torch.Generator().manual_seed(1)
    for count, path in ((BATCHES * job.batch, job.vectors), (job.batch, job.held_out)):
        x = torch.randn(count, job.d_in, generator=generator)
        save_file({"x": x, "y": targets_of(x)}, Path(path))
    return torch.randn(BATCHES * job.batch, job.d_in, generator=generator)


def modes_of(peer: str, architecture: str, device: str, dense: bool) -> list[str]:
    """Return the ways in which a peer computes, the default first; for dense steps only the faster one."""
    on_gpu = device != "cpu"
    if peer not in RECIPES.get(architecture, PEERS):
        return []
    if architecture == "matching_pursuit":
        # fsae has no step of it in bfloat16.
        return ["fp32"]
    if peer == "sparsify":
        # On a GPU it turns autocast on by itself.
        return ["bf16" if on_gpu else "fp32"] if architecture in ("topk", *RECIPES) else []
    if peer == "dictionary_learning":
        return [] if dense else ["fp32", "bf16"] if on_gpu else ["fp32"]
    if dense:
        return ["bf16", "compiled"] if on_gpu else ["bf16"]
    return ["fp32", "bf16", *(["sparse"] if architecture == "topk" else []), *(["compiled"] if on_gpu else [])]


def compare(
    base: Job, peer: str, architecture: str, dense: bool, vectors: torch.Tensor, repeats: int, clock: str = "time"
) -> list[Row]:
    """Compare fsae in both precisions with a peer in all its modes; no rows if the peer lacks the architecture.

    Args:
        base: shapes and files.
        peer: the peer.
        architecture: the architecture.
        dense: whether biases start at zero, with half of the codes active.
        vectors: for the starting weights; training uses others.
        repeats: timed steps of each.
        clock: `time`, or `cpu_time` for the time that each process computes.
    """
    modes = modes_of(peer, architecture, base.device, dense)
    if not modes:
        return []
    density = None if dense else base.k / base.d_sae
    common = replace(base, rules=peer, architecture=architecture, density=density)
    write_weights(common, vectors)
    jobs = [replace(common, library="fsae", mode=mode) for mode in OURS]
    jobs += [replace(common, library=peer, mode=mode) for mode in modes]
    exact = None
    if architecture in CHECKED_IN_FLOAT64:
        checked = in_turns([replace(common, library=each, mode="fp64") for each in ("fsae", peer)], repeats=0)
        exact = Row(checked[1], {"fp64": checked[0]})
    measured = in_turns(jobs, repeats, clock)
    ours = dict(zip(OURS, measured, strict=False))
    return [Row(theirs, ours, exact) for theirs in measured[len(OURS) :]]


def in_turns(jobs: Sequence[Job], repeats: int, clock: str = "time") -> list[Measured]:
    """Start all, check them, then time one step of each in turn, forward and backward.

    They run one after another if the tensors that they keep between steps would fill half of a GPU's memory.
    """
    all_measured = [Measured(job) for job in jobs]
    # Encoder and decoder, their gradients, and the optimiser's two moments, in float32.
    kept = sum(2 * 4 * 4 * job.d_in * job.d_sae for job in jobs)
    at_once = len(jobs) if jobs[0].device == "cpu" or 2 * kept < torch.cuda.mem_get_info()[0] else 1
    for first in range(0, len(jobs), at_once):
        _measure(all_measured[first : first + at_once], repeats, clock)
    for measured in all_measured:
        if measured.failure and measured.job.library == "fsae":
            raise SystemExit(measured.failure)
    return all_measured


def _measure(all_measured: Sequence[Measured], repeats: int, clock: str) -> None:
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
                    measured.seconds.append(process.time(clock))
        for measured, process in running:
            with _stopping(measured):
                measured.memory = process.memory()


@contextmanager
def _stopping(measured: Measured) -> Iterator[None]:
    """Record the failure of a process that stops or cannot start; the others continue."""
    try:
        yield
    except (CannotInstallError, StoppedError) as error:
        measured.failure = str(error)


def growth(base: Job, widths: Sequence[int], repeats: int, clock: str = "time") -> dict[str, dict[int, float]]:
    """Return the median seconds of fsae's topk step by precision and d_sae."""
    jobs = []
    for d_sae in widths:
        job = replace(base, library="fsae", rules="sae_lens", architecture="topk", d_sae=d_sae)
        job = replace(job, weights=str(Path(base.weights).with_name(f"weights-{d_sae}.safetensors")))
        write_weights(job, torch.zeros(1, base.d_in))
        jobs += [replace(job, mode=mode) for mode in OURS]
    seconds: dict[str, dict[int, float]] = {mode: {} for mode in OURS}
    for measured in in_turns(jobs, repeats, clock):
        seconds[measured.job.mode][measured.job.d_sae] = measured.median
    return seconds

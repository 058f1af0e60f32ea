"""The time of a sweep: fsae with the store, packed, and without the store, and sae_lens looped over the same jobs.

    python -m benchmarks.sweep                 # all twelve jobs every way: hours on a small machine
    python -m benchmarks.sweep --measured 3    # ways that share nothing: one job per architecture, times four

Twelve jobs: standard, gated and jumprelu, each with two sparsity weights and with and without the Fisher penalty, on
one site of SmolLM2-135M-Instruct (Q4_1). sae_lens has no such penalty, so its jobs are the same without it. Its jobs do
not evaluate; fsae's jobs also evaluate on held-out text, log, plot and export.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.peers.environment import python_of
from benchmarks.runs import fsae_run, sae_lens_run
from fsae.ranges import COUNT, COUNT_OR_NONE, argument

ARCHITECTURES = ("standard", "gated", "jumprelu")
SPARSITIES = (1.0, 3.0)
FISHER_WEIGHTS = (0.0, 1.0)
JOBS = len(ARCHITECTURES) * len(SPARSITIES) * len(FISHER_WEIGHTS)


@dataclass(frozen=True)
class Timing:
    """The seconds of a way to run the sweep: as measured, and for all twelve jobs."""

    measured: float
    jobs: int

    @property
    def sweep(self) -> float:
        """Seconds of all jobs; fewer than all are measured only if jobs share nothing."""
        return self.measured * JOBS / self.jobs


def main() -> None:
    """Run the sweep in every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--measured",
        type=int,
        choices=(3, 6, 12),
        default=12,
        help="measured jobs, for ways in which jobs share nothing",
    )
    parser.add_argument("--tokens", type=argument(int, COUNT), default=500_000)
    parser.add_argument("--d-sae", type=argument(int, COUNT), default=4608)
    parser.add_argument("--batch", type=argument(int, COUNT), default=4096)
    parser.add_argument("--site", default="resid_post")
    parser.add_argument("--layer", type=argument(int, COUNT_OR_NONE), default=12)
    parser.add_argument("--autocast", action="store_true", help="sae_lens in mixed precision")
    options = parser.parse_args()
    print(
        f"{machine()}; SmolLM2-135M-Instruct (Q4_1) {options.site}.{options.layer}, {options.tokens:,} tokens per job, "
        f"d_sae {options.d_sae}, batch {options.batch}"
    )
    timings = {
        "sae_lens, looped": sae_lens(options),
        "fsae, with the store": ours(options, "launcher=local", "source.cache=disk"),
        "fsae, packed": ours(options, "launcher=packed", "source.cache=disk"),
        "fsae, without the store": ours(options, "launcher=local", "source.cache=none", jobs=options.measured),
    }
    slowest = timings["sae_lens, looped"].sweep
    print(f"\n{'':24}{'jobs measured':>14}{'seconds':>9}{'all 12 jobs':>13}{'sae_lens / this':>17}")
    for name, timing in timings.items():
        print(
            f"{name:24}{timing.jobs:>14}{timing.measured:>9.0f}{timing.sweep:>12.0f}s{slowest / timing.sweep:>16.1f}x"
        )


def ours(options: argparse.Namespace, *overrides: str, jobs: int = JOBS) -> Timing:
    """Run fsae's sweep in its own process and outputs folder, including imports and model loading."""
    axes = [f"arch={','.join(ARCHITECTURES)}"]
    # Three jobs are one per architecture, six have both sparsities.
    axes.append(f"loss.sparsity.weight={_list(SPARSITIES if jobs >= 6 else SPARSITIES[:1])}")
    axes.append(f"loss.penalty.weight={_list(FISHER_WEIGHTS if jobs == JOBS else FISHER_WEIGHTS[:1])}")
    with tempfile.TemporaryDirectory(prefix="fsae-benchmark-") as outputs:
        seconds, output = fsae_run(
            [
                "-m", *axes, *overrides,
                f"site={options.site}", f"site.layer={options.layer}",
                f"arch.d_sae={options.d_sae}",
                f"trainer.samples={options.tokens}", f"trainer.batch_size={options.batch}",
                f"source.tokens={options.tokens}",
                "eval=[vectors]",
            ],
            outputs,
        )  # fmt: skip
        finished = list(Path(outputs).glob("sweeps/*/*/*/results.json"))
        if len(finished) != jobs:
            raise SystemExit(f"{len(finished)} of {jobs} jobs finished:\n{output[-3000:]}")
        for line in harvest_seconds(outputs):
            print(f"  {line}", flush=True)
    return Timing(seconds, jobs)


def harvest_seconds(outputs: str) -> list[str]:
    """Return the line about the training time in each job's log."""
    logs = sorted(Path(outputs).glob("sweeps/*/*/*/run.log"), key=lambda log: int(log.parent.name))
    return [
        f"job {log.parent.name}: {line.partition('INFO ')[2]}"
        for log in logs
        for line in log.read_text().splitlines()
        if "trained in" in line
    ]


def sae_lens(options: argparse.Namespace) -> Timing:
    """Run sae_lens' runner, one process per job."""
    total = 0.0
    # sae_lens has no such penalty, so half of the jobs would repeat the other half.
    for number in range(options.measured):
        architecture = ARCHITECTURES[number % 3]
        seconds, summary = sae_lens_run(
            python_of("sae_lens"),
            architecture=architecture,
            sparsity=SPARSITIES[number // 3 % 2],
            site=options.site,
            layer=options.layer,
            tokens=options.tokens,
            batch_size=options.batch,
            d_sae=options.d_sae,
            autocast=options.autocast,
        )
        print(f"  sae_lens {architecture}: {seconds:.0f} s, {summary}", flush=True)
        total += seconds
    return Timing(total, options.measured)


def _list(values: Sequence[float]) -> str:
    return ",".join(map(str, values))


if __name__ == "__main__":
    main()

"""What a sweep costs: ours with the store, ours packed, ours without the store, and sae_lens looped over the same jobs.

    make setup .venv-peers/.installed
    python -m benchmarks.sweep                 # all twelve jobs every way: hours on a small machine
    python -m benchmarks.sweep --measured 3    # where jobs share nothing, one an architecture, times four

Twelve jobs: standard, gated and jumprelu, each with two sparsity weights and with and without the Fisher penalty, on
one site of SmolLM2. sae_lens has no such penalty: its jobs are the same without it, and none of them evaluates, while
ours also evaluate on held-out text, log, plot and export.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fsae.language_models.embedded import embedded_folder
from fsae.language_models.settings import Package
from fsae.sources.documents import DatasetFormat, DatasetSettings, dataset_files

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("standard", "gated", "jumprelu")
SPARSITIES = (1.0, 3.0)
FISHER_WEIGHTS = (0.0, 1.0)
JOBS = len(ARCHITECTURES) * len(SPARSITIES) * len(FISHER_WEIGHTS)
LR = 1e-3
CONTEXT = 128
D_IN = 576


@dataclass(frozen=True)
class Timing:
    """Seconds of a way to run the sweep: as measured, and for all twelve jobs."""

    measured: float
    jobs: int

    @property
    def sweep(self) -> float:
        """For all jobs; only where jobs share nothing are fewer than all measured."""
        return self.measured * JOBS / self.jobs


def main() -> None:
    """Run every way in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=int, choices=(3, 6, 12), default=12, help="of those that share nothing")
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--site", default="resid_post")
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--autocast", action="store_true", help="sae_lens in mixed precision")
    parser.add_argument("--peers-python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    options = parser.parse_args()
    if not options.peers_python.exists():
        parser.error(f"{options.peers_python} is not there; `make .venv-peers/.installed` makes it")
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; SmolLM2-135M "
        f"{options.site}.{options.layer}, {options.tokens:,} tokens a job, d_sae {options.d_sae}, batch {options.batch}"
    )
    timings = {
        "sae_lens, looped": sae_lens(options),
        "ours, with the store": ours(options, "launcher=local", "source.cache=disk"),
        "ours, packed": ours(options, "launcher=packed", "source.cache=disk"),
        "ours, without the store": ours(options, "launcher=local", "source.cache=none", jobs=options.measured),
    }
    slowest = timings["sae_lens, looped"].sweep
    print(f"\n{'':24}{'jobs measured':>14}{'seconds':>9}{'all 12 jobs':>13}{'sae_lens / this':>17}")
    for name, timing in timings.items():
        print(
            f"{name:24}{timing.jobs:>14}{timing.measured:>9.0f}{timing.sweep:>12.0f}s{slowest / timing.sweep:>16.1f}x"
        )


def ours(options: argparse.Namespace, *overrides: str, jobs: int = JOBS) -> Timing:
    """Our sweep in a process of its own, with an outputs folder of its own, imports and model loading included."""
    axes = [f"arch={','.join(ARCHITECTURES)}"]
    # Three jobs are one an architecture, six have both sparsities.
    axes.append(f"loss.sparsity.weight={_list(SPARSITIES if jobs >= 6 else SPARSITIES[:1])}")
    axes.append(f"loss.fisher.weight={_list(FISHER_WEIGHTS if jobs == JOBS else FISHER_WEIGHTS[:1])}")
    with tempfile.TemporaryDirectory(prefix="fsae-benchmark-") as outputs:
        seconds, said = _timed(
            [
                sys.executable, "-m", "fsae.run", "-m", *axes, *overrides,
                "model=smollm2_135m", "dataset=python_source", f"dataset.context={CONTEXT}",
                f"site={options.site}", f"site.layer={options.layer}",
                f"arch.d_sae={options.d_sae}",
                f"trainer.tokens={options.tokens}", f"trainer.batch_size={options.batch}", f"trainer.lr={LR}",
                f"source.tokens={options.tokens}",
                "eval.splice_tokens=0",
            ],
            {"FSAE_OUTPUTS": outputs},
        )  # fmt: skip
        finished = list(Path(outputs).glob("sweeps/*/*/*/results.json"))
        if len(finished) != jobs:
            raise SystemExit(f"{len(finished)} of {jobs} jobs finished:\n{said[-3000:]}")
        for line in harvest_seconds(outputs):
            print(f"  {line}", flush=True)
    return Timing(seconds, jobs)


def harvest_seconds(outputs: str) -> list[str]:
    """What each job's log says of its harvest."""
    logs = sorted(Path(outputs).glob("sweeps/*/*/*/run.log"), key=lambda log: int(log.parent.name))
    return [
        f"job {log.parent.name}: {line.partition('INFO ')[2]}"
        for log in logs
        for line in log.read_text().splitlines()
        if "trained in" in line
    ]


def sae_lens(options: argparse.Namespace) -> Timing:
    """sae_lens' runner, a process a job."""
    texts = DatasetSettings(name="python_source", format=DatasetFormat.python_source)
    common = {
        "model": str(embedded_folder(Package.smollm2_135m)),
        "texts": dataset_files(texts),
        "hook_name": f"blocks.{options.layer}.hook_{options.site}",
        "tokens": options.tokens,
        "batch_size": options.batch,
        "context": CONTEXT,
        "d_in": D_IN,
        "d_sae": options.d_sae,
        "rows": 8,
        "lr": LR,
        "autocast": options.autocast,
        "threads": torch.get_num_threads(),
    }
    total = 0.0
    # Without a penalty of that kind, half of the jobs would be the other half over again.
    for number in range(options.measured):
        job = common | {
            "architecture": ARCHITECTURES[number % 3],
            "sparsity": SPARSITIES[number // 3 % 2],
        }
        command = [str(options.peers_python), str(ROOT / "benchmarks" / "sae_lens_training.py"), json.dumps(job)]
        seconds, said = _timed(command, {"HF_HUB_OFFLINE": "1"})
        print(f"  sae_lens {job['architecture']}: {seconds:.0f} s, {said.strip().splitlines()[-1]}", flush=True)
        total += seconds
    return Timing(total, options.measured)


def _timed(command: Sequence[str], environment: dict[str, str]) -> tuple[float, str]:
    began = time.monotonic()
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[:4]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return time.monotonic() - began, done.stdout


def _list(values: Sequence[float]) -> str:
    return ",".join(map(str, values))


if __name__ == "__main__":
    main()

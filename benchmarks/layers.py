"""The time of transcoders of several layers in one pack, relative to one alone; both from text, with imports.

    python -m benchmarks.layers                          # 6 layers of SmolLM2-135M-Instruct, 200,000 tokens
    python -m benchmarks.layers --repeats 3 --tokens 1_000_000 --d-sae 4608

Both ways alternate. The transcoder alone is that of the last layer, which reads as much of the language model as the
pack does. Each run harvests into an empty store, trains, evaluates on held-out text, logs, plots and exports. CPU
seconds are those of the run's process, for a machine that does other work meanwhile.
"""

import argparse
import resource
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import machine
from benchmarks.runs import fsae_run
from fsae.ranges import COUNT, COUNT_OR_NONE, argument

LAYERS = (2, 7, 12, 17, 22, 27)


class Timing(NamedTuple):
    """Seconds of a run."""

    wall: float
    cpu: float


def main() -> None:
    """Run both ways in turn and print their times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=argument(int, COUNT_OR_NONE), nargs="+", default=LAYERS)
    parser.add_argument("--tokens", type=argument(int, COUNT), default=200_000)
    parser.add_argument("--d-sae", type=argument(int, COUNT), default=2304)
    parser.add_argument("--k", type=argument(int, COUNT), default=32)
    parser.add_argument("--batch", type=argument(int, COUNT), default=2048)
    parser.add_argument("--repeats", type=argument(int, COUNT), default=1)
    options = parser.parse_args()
    layers: list[int] = sorted(options.layers)
    print(
        f"{machine()}; transcoders of SmolLM2-135M-Instruct (Q4_1), {options.tokens:,} tokens, topk with k "
        f"{options.k}, d_sae {options.d_sae}, batch {options.batch}"
    )
    ways = {f"layer {layers[-1]} alone": layers[-1:], f"{len(layers)} layers packed": layers}
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, chosen in ways.items():
            timings[name].append(packed(options, chosen))
            print(f"  {name}: {timings[name][-1].wall:.0f} s, {timings[name][-1].cpu:.0f} s of CPU", flush=True)
    alone, together = ([statistics.median(column) for column in zip(*each, strict=True)] for each in timings.values())
    wall, cpu = (b / a for a, b in zip(alone, together, strict=True))
    print(f"\n{len(layers)} layers / one alone: {wall:.2f} of the time, {cpu:.2f} of the CPU seconds")


def packed(options: argparse.Namespace, layers: Sequence[int]) -> Timing:
    """Train the transcoders of some layers in one pack, in its own process and outputs folder."""
    with tempfile.TemporaryDirectory(prefix="fsae-benchmark-") as outputs:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds, output = fsae_run(
            [
                "-m", "layout=transcoder", f"site.layer={','.join(map(str, layers))}", "launcher=packed",
                "arch=topk", f"arch.k={options.k}", f"arch.d_sae={options.d_sae}",
                f"trainer.samples={options.tokens}", f"trainer.batch_size={options.batch}",
                "eval=[vectors]", "suite=quick", "tracking=none",
            ],
            outputs,
            "bfloat16",
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = len(list(Path(outputs).glob("sweeps/*/*/*/results.json")))
    if finished != len(layers):
        raise SystemExit(f"{finished} of {len(layers)} jobs finished:\n{output[-3000:]}")
    return Timing(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


if __name__ == "__main__":
    main()

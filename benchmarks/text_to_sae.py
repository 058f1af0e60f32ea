"""The time from text to a trained autoencoder without a cache: fsae against sae_lens' runner, with imports.

    python -m benchmarks.text_to_sae              # 1M tokens of SmolLM2-135M-Instruct, layer 10
    python -m benchmarks.text_to_sae --tokens 100000 --arch gated

Runs alternate: fsae in float32 like sae_lens, fsae with the language model and training's products in bfloat16, and
sae_lens. fsae also evaluates on held-out text, logs, plots and exports; sae_lens does none of these.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.machine import machine_name
from benchmarks.peers.environment import python_of
from benchmarks.runs import fsae_run, sae_lens_run
from fsae.ranges import COUNT, COUNT_OR_NONE, argument
from fsae.training.settings import Precision

# Weights at which some tens of latents are active at the end.
SPARSITY = {"standard": 1.0, "gated": 1.0, "jumprelu": 1.0}


def main() -> None:
    """Run each way in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=argument(int, COUNT), default=1_000_000)
    parser.add_argument("--layer", type=argument(int, COUNT_OR_NONE), default=10)
    parser.add_argument("--d-sae", type=argument(int, COUNT), default=4608)
    parser.add_argument("--batch", type=argument(int, COUNT), default=4096)
    parser.add_argument("--k", type=argument(int, COUNT), default=64)
    parser.add_argument("--arch", choices=("standard", "gated", "jumprelu", "topk"), default="topk")
    parser.add_argument("--repeats", type=argument(int, COUNT), default=1)
    parser.add_argument("--autocast", action="store_true", help="sae_lens in mixed precision as well")
    options = parser.parse_args()
    print(
        f"{machine_name('cpu')}, {torch.get_num_threads()} threads; "
        f"SmolLM2-135M-Instruct (Q4_1) resid_post.{options.layer}, "
        f"{options.tokens:,} tokens, {options.arch}, d_sae {options.d_sae}, batch {options.batch}"
    )
    ways = {
        "fsae": partial(ours, options, Precision.fp32, "float32"),
        "fsae, bfloat16": partial(ours, options, Precision.bf16, "bfloat16"),
        "sae_lens": partial(sae_lens, options, False),
    }
    if options.autocast:
        ways |= {"sae_lens, autocast": partial(sae_lens, options, True)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, run in ways.items():
            seconds[name].append(run())
            print(f"  {name}: {seconds[name][-1]:.0f} s", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    theirs = [name for name in ways if name.startswith("sae_lens")]
    print(f"\n{'':22}{'seconds':>9}" + "".join(f"{f'{name} / this':>27}" for name in theirs))
    for name, value in medians.items():
        print(f"{name:22}{value:>9.0f}" + "".join(f"{medians[their] / value:>26.1f}x" for their in theirs))


def ours(options: argparse.Namespace, precision: Precision, dtype: str) -> float:
    """Return the seconds of a run of fsae, with this precision of products and this dtype of the language model."""
    sparsity = f"arch.k={options.k}" if options.arch == "topk" else f"loss.sparsity.weight={SPARSITY[options.arch]}"
    with tempfile.TemporaryDirectory(prefix="fsae-benchmark-") as outputs:
        seconds, _ = fsae_run(
            [
                f"arch={options.arch}", sparsity, f"arch.d_sae={options.d_sae}",
                "site=resid_post", f"site.layer={options.layer}",
                f"trainer.samples={options.tokens}", f"trainer.batch_size={options.batch}",
                f"trainer.precision={precision.value}", "eval=[vectors]",
                "source.tokens=null", "source.cache=none",
            ],
            outputs,
            dtype,
        )  # fmt: skip
        (log,) = Path(outputs).glob("runs/*/run.log")
        trained = next(line for line in log.read_text().splitlines() if "trained in" in line)
        print(f"    {trained.partition('INFO ')[2]}")
    return seconds


def sae_lens(options: argparse.Namespace, autocast: bool) -> float:
    """Return the seconds of a run of sae_lens' runner."""
    seconds, summary = sae_lens_run(
        python_of("sae_lens"),
        architecture=options.arch,
        sparsity=options.k if options.arch == "topk" else SPARSITY[options.arch],
        site="resid_post",
        layer=options.layer,
        tokens=options.tokens,
        batch_size=options.batch,
        d_sae=options.d_sae,
        autocast=autocast,
    )
    print(f"    {summary}")
    return seconds


if __name__ == "__main__":
    main()

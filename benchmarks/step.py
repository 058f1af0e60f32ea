"""The time of a training step, relative to a lower bound for any exact method: the encoder's own product.

    python -m benchmarks.step                     # 768 -> 12,288, batch 4,096, 64 active latents
    python -m benchmarks.step --d-sae 4096 --batch 1024 --repeats 3
    python -m benchmarks.step --precision bf16    # steps and the encoder's product in bfloat16
    python -m benchmarks.step --against v0.1      # steps of an earlier commit and of the working tree, nothing else

It first prints the machine's speed for a square product and for the encoder's. Then it prints three tables; a row's
variants are interleaved in one process, so that a drift of the machine affects all alike: whole steps per architecture,
sparse and dense, relative to the encoder's product; whole steps with the Fisher term relative to the same step without
it; and the Fisher term alone, in float32, relative to the full d_sae x d_sae matrix.

With --against, two processes take steps in turns, each with its own source, from the same weights.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import machine
from benchmarks.peers.comparison import ARCHITECTURES, write_vectors
from benchmarks.peers.fsae_steps import write_weights
from benchmarks.peers.job import Job
from benchmarks.peers.process import Process
from benchmarks.source_tree import ROOT, tree_of
from fsae.autoencoders.abs_topk import AbsTopKSettings
from fsae.autoencoders.batch_topk import BatchTopKSettings
from fsae.autoencoders.gated import GatedSettings
from fsae.autoencoders.jumprelu import JumpReLUSettings
from fsae.autoencoders.layout import Ends
from fsae.autoencoders.settings import SparseAutoencoderSettings
from fsae.autoencoders.standard import StandardSettings
from fsae.autoencoders.topk import TopKSettings
from fsae.losses.auxiliary import AuxK, GateReconstruction
from fsae.losses.fisher import Fisher, FisherEstimator, FisherForm, fisher_sums
from fsae.losses.objective import Objective
from fsae.losses.reconstruction import SquaredError
from fsae.losses.sparsity import L1, StepL0
from fsae.losses.term import LossTerm
from fsae.memory import freed_memory_kept
from fsae.ranges import COUNT, argument
from fsae.training.gradient_learner import GradientLearner
from fsae.training.settings import AdamSettings, Precision

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}
# Side of the square matrices whose product measures the machine's speed.
SQUARE = 4096
# Turns of operations that take milliseconds.
SHORT_REPEATS = 10
# Steps of a process before one of its steps is timed.
WARM_UP = 3


def architectures(d_sae: int, k: int) -> dict[str, tuple[SparseAutoencoderSettings, dict[str, LossTerm]]]:
    """Return every architecture with its usual loss, at about k active latents from the first step on."""
    density = k / d_sae
    reconstruction: dict[str, LossTerm] = {"reconstruction": SquaredError()}
    return {
        "standard": (StandardSettings(d_sae=d_sae, init_density=density), reconstruction | {"sparsity": L1()}),
        "gated": (
            GatedSettings(d_sae=d_sae, init_density=density),
            reconstruction | {"sparsity": L1(), "auxiliary": GateReconstruction()},
        ),
        "jumprelu": (JumpReLUSettings(d_sae=d_sae, init_density=density), reconstruction | {"sparsity": StepL0()}),
        "topk": (TopKSettings(d_sae=d_sae, k=k), reconstruction | {"auxiliary": AuxK()}),
        "batch_topk": (BatchTopKSettings(d_sae=d_sae, k=k), reconstruction | {"auxiliary": AuxK()}),
        "abs_topk": (AbsTopKSettings(d_sae=d_sae, k=k), reconstruction | {"auxiliary": AuxK()}),
    }


def learner(
    settings: SparseAutoencoderSettings,
    terms: dict[str, LossTerm],
    x: Tensor,
    sparse: bool,
    precision: Precision = Precision.fp32,
    compiled: bool = False,
    ends: Ends | None = None,
    targets: Tensor | None = None,
) -> GradientLearner:
    """Return an autoencoder in training that begins with x; without `ends` both of its ends are those of x."""
    autoencoder = settings.build(ends or x.shape[1], torch.Generator().manual_seed(0)).to(x.device)
    autoencoder.initialise(lambda: x, scale=1.0, targets=None if targets is None else lambda: targets)
    # A learning rate too small to change any weight keeps the density constant during the measurement.
    trainer = AdamSettings(
        samples=10**9, batch_size=len(x), lr=1e-12, log_every=10**6, precision=precision, compile=compiled
    )
    member = GradientLearner(autoencoder, Objective(terms), trainer, scale=1.0, seed=0)
    member.sparse = sparse
    return member


def stepper(member: GradientLearner, x: Tensor, targets: Tensor | None = None) -> Callable[[], object]:
    """Return a function that makes one whole optimiser step on x."""
    steps = iter(range(10**6))
    return lambda: member.step(x, next(steps), targets)


def medians(
    variants: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the median seconds of each variant, interleaved; the first turn warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with freed_memory_kept():
        for turn in range(repeats + 1):
            for name, run in variants.items():
                wait()
                begin = clock()
                run()
                wait()
                if turn > 0:
                    seconds[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def wait() -> None:
    """Wait until the GPU, if any, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rates(pairs: dict[str, tuple[Tensor, Tensor]], repeats: int) -> dict[str, float]:
    """Return the TFLOP/s of each pair's product."""
    # On a GPU the launch of one product takes about as long as the product.
    times = 20 if torch.cuda.is_available() else 1

    def multiply(a: Tensor, b: Tensor) -> None:
        for _ in range(times):
            torch.mm(a, b)

    seconds = medians({name: partial(multiply, *pair) for name, pair in pairs.items()}, repeats)
    return {name: 2e-12 * times * a.numel() * b.shape[1] / seconds[name] for name, (a, b) in pairs.items()}


def fisher_built(g: Tensor) -> Tensor:
    """Return the penalty by its definition, from the whole (d_sae, d_sae) matrix."""
    F = g.T @ g / g.shape[0]
    return (F - torch.diag(F.diagonal())).square().sum()


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Return a parser with the options of a step's shape, with the defaults that steps are compared at."""
    parser.add_argument("--d-in", type=argument(int, COUNT), default=768)
    parser.add_argument("--d-sae", type=argument(int, COUNT), default=12_288)
    parser.add_argument("--batch", type=argument(int, COUNT), default=4096)
    parser.add_argument("--k", type=argument(int, COUNT), default=64)
    parser.add_argument("--repeats", type=argument(int, COUNT), default=5)


def inputs(batch: int, d_in: int) -> Tensor:
    """Return a training batch, on the GPU if there is one."""
    x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(1))
    return x.to("cuda" if torch.cuda.is_available() else "cpu")


def shape_of(options: argparse.Namespace) -> str:
    """Return the machine and the shape, for a table's heading."""
    return f"{machine()}; d_in {options.d_in}, d_sae {options.d_sae}, batch {options.batch}, {options.k} active"


def steps_against(ref: str, architectures: Sequence[str], options: argparse.Namespace) -> None:
    """Print how long whole steps take with a commit's source, and with the working tree's."""
    print(f"{'whole step':<12}{'older':>10}{'newer':>10}{'newer/older':>13}")
    with tree_of(ref) as older, tempfile.TemporaryDirectory(prefix="fsae-step-") as folder:
        base = Job.of_fsae(
            Path(folder),
            d_in=options.d_in,
            d_sae=options.d_sae,
            k=options.k,
            batch=options.batch,
            lr=1e-12,
            device="cuda" if torch.cuda.is_available() else "cpu",
            threads=torch.get_num_threads(),
        )
        # The rules of sparsify are our defaults.
        base = replace(base, mode=options.precision, rules="sparsify")
        vectors = write_vectors(base)
        for architecture in architectures:
            job = replace(base, architecture=architecture)
            write_weights(job, vectors)
            python = Path(sys.executable)
            with Process(job, python, older) as before, Process(job, python, ROOT) as after:
                seconds: dict[Process, list[float]] = {before: [], after: []}
                for process in seconds:
                    for _ in range(WARM_UP):
                        process.step()
                for turn in range(options.repeats):
                    # To and fro, as a drifting machine would favour whichever always comes first.
                    for process in list(seconds)[:: 1 if turn % 2 == 0 else -1]:
                        seconds[process].append(process.time())
            old, new = (statistics.median(values) for values in seconds.values())
            print(f"{architecture:<12}{old:>9.4f}s{new:>9.4f}s{new / old:>13.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    parser.add_argument("--arch", nargs="*", default=None, help="only these architectures")
    parser.add_argument("--precision", choices=[each.value for each in Precision], default="fp32")
    parser.add_argument("--no-dense", action="store_true", help="omit the dense steps, which are slow")
    parser.add_argument("--compile", action="store_true", help="also dense steps with trainer.compile")
    parser.add_argument("--no-fisher", action="store_true", help="omit the tables of the Fisher term")
    parser.add_argument("--against", metavar="REF", help="compare whole steps with this commit's, and nothing else")
    args = parser.parse_args()
    if args.against:
        print(f"{shape_of(args)}, {args.precision}; medians of {args.repeats} turns\n")
        steps_against(args.against, args.arch or ARCHITECTURES, args)
        return
    x, precision = inputs(args.batch, args.d_in), Precision(args.precision)
    weights = torch.randn(args.d_sae, args.d_in, device=x.device).T
    square = torch.randn(SQUARE, SQUARE, device=x.device)
    encoder = {each: (x.to(dtype), weights.to(dtype)) for each, dtype in DTYPES.items()}
    print(f"{shape_of(args)}, {precision.value}; medians of {args.repeats} turns\n")
    pairs = {f"{each.value} {SQUARE}^3": (square.to(dtype), square.to(dtype)) for each, dtype in DTYPES.items()}
    pairs |= {f"{each.value} encoder": pair for each, pair in encoder.items()}
    print("TFLOP/s: " + ", ".join(f"{name} {rate:.3g}" for name, rate in rates(pairs, args.repeats).items()))
    chosen = architectures(args.d_sae, args.k)
    if args.arch:
        chosen = {name: chosen[name] for name in args.arch}
    kinds = "".join(f"{kind:>10}" for kind in ("encoder", "sparse", "dense", "compiled"))
    print(f"\n{'whole step':<12}{kinds}{'sparse/encoder':>16}{'dense/sparse':>14}")
    for name, (settings, terms) in chosen.items():
        variants = {
            "encoder": partial(torch.mm, *encoder[precision]),
            "sparse": stepper(learner(settings, terms, x, True, precision), x),
        }
        if not args.no_dense:
            variants["dense"] = stepper(learner(settings, terms, x, False, precision), x)
        if args.compile:
            variants["compiled"] = stepper(learner(settings, terms, x, False, precision, compiled=True), x)
        t = medians(variants, args.repeats)
        dense, compiled = (t.get(kind, float("nan")) for kind in ("dense", "compiled"))
        print(
            f"{name:<12}{t['encoder']:>9.3f}s{t['sparse']:>9.3f}s{dense:>9.3f}s{compiled:>9.3f}s"
            f"{t['sparse'] / t['encoder']:>16.2f}{dense / t['sparse']:>14.1f}"
        )
    if args.no_fisher:
        return
    print(f"\n{'with Fisher':<30}{'without':>10}{'with':>10}{'with/without':>14}")
    name, (settings, terms) = next(iter(chosen.items())) if args.arch else ("topk", chosen["topk"])
    for form in FisherForm:
        losses = {"without": terms, "with": terms | {"fisher": Fisher(form=form, weight=1e-12)}}
        members = {name: learner(settings, loss, x, True, precision) for name, loss in losses.items()}
        t = medians({name: stepper(member, x) for name, member in members.items()}, args.repeats)
        print(f"{name + ', ' + form.value:<30}{t['without']:>9.3f}s{t['with']:>9.3f}s{t['with'] / t['without']:>14.2f}")
    print(f"\n{'Fisher term alone':<30}{'built':>10}{'fsae':>10}{'built/fsae':>14}")
    for batch in sorted({min(100, args.batch), args.batch}):
        autoencoder = settings.build(args.d_in, torch.Generator().manual_seed(0)).to(x.device)
        autoencoder.initialise(lambda: x, scale=1.0)
        for form in (FisherForm.pre, FisherForm.post):
            record = autoencoder(x[:batch], sparse=True)
            g = (2 * (record.pre_activations if form is FisherForm.pre else record.codes).dense()).detach()
            g.requires_grad_()
            # The gradient is taken with respect to the codes on both sides. For `pre` the full matrix is built from
            # the pre-activations alone; our term's gradient is taken further, with respect to the weights.
            leaf = autoencoder.W_enc
            if form is FisherForm.post:
                leaf = record.codes.values.detach().requires_grad_()
                record = replace(record, codes=record.codes.with_values(leaf))

            def ours(record=record, form=form, leaf=leaf) -> None:
                value = fisher_sums(record, form, FisherEstimator.batch).off_diagonal
                torch.autograd.grad(value, leaf, retain_graph=True)

            def built(g=g) -> None:
                torch.autograd.grad(fisher_built(g), g)

            # Not interleaved: building takes up to some hundred times as long, and so many turns would take too long.
            t = medians({"built": built}, max(1, args.repeats // 2)) | medians({"ours": ours}, SHORT_REPEATS)
            label = f"{form.value}, batch {batch}"
            print(f"{label:<30}{t['built']:>9.3f}s{t['ours']:>9.3f}s{t['built'] / t['ours']:>14.1f}")


if __name__ == "__main__":
    main()

"""The time of a step with another loss, penalty or layout, relative to the usual step of the same sizes.

    python -m benchmarks.ratios                    # 768 -> 12,288, batch 4,096, 64 active latents
    python -m benchmarks.ratios --only transcoder "crosscoder, 3 parts"
    python -m benchmarks.ratios --cpu-time         # in the process's own time, for a machine that is busy

The two steps of a row are interleaved in one process, so that a drift of the machine affects both alike. `at most` is
the ratio that a change of fsae should not exceed.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch

from benchmarks.peers.fsae_steps import targets_of
from benchmarks.step import add_shape, architectures, inputs, learner, medians, shape_of, stepper
from fsae.autoencoders.layout import End, Ends, Layout, Scaling
from fsae.couplings.jacobian import JacobianCoupling, JacobianSparsity
from fsae.language_models.mlp import MLP, Affine
from fsae.losses.decorrelation import Decorrelation
from fsae.losses.fisher import Fisher, RandomSign
from fsae.losses.matryoshka import Matryoshka, SampledMatryoshka
from fsae.losses.sparsity import AnnealedLp, DenseLatents, TargetForm, TargetL0
from fsae.losses.term import LossTerm
from fsae.losses.weights import Orthogonality, WeightNorm
from fsae.training.loop import Training
from fsae.training.resample import Reinitialisation
from fsae.training.settings import Precision


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of the usual step of an architecture.

    Attributes:
        architecture: the architecture of both steps.
        terms: the terms of the loss that it adds or replaces.
        ends: the layout that it has instead of an autoencoder's.
        steps: steps that are timed together.
        at_most: the ratio of the two times that should not be exceeded; None if there is none.
    """

    architecture: str
    terms: dict[str, LossTerm] = field(default_factory=dict)
    ends: Ends | None = None
    steps: int = 1
    at_most: float | None = None


@dataclass(frozen=True, kw_only=True)
class JacobianPair(Change):
    """The steps of two autoencoders around an MLP with the Jacobian term, relative to those without it.

    Attributes:
        d_mlp: hidden units of the MLP as a multiple of its width.
        gated: whether the MLP has a gate.
        samples: see `JacobianSparsity`.
    """

    d_mlp: float = 4.0
    gated: bool = False
    samples: int = 64


def changes(d_in: int) -> dict[str, Change]:
    """Return all changes that are measured, for sites of width d_in."""
    fourths = [1 / 16, 1 / 8, 1 / 4]
    read, written = Layout.of(d_in, "mlp_in"), Layout.of(d_in, "mlp_out")
    layers = Layout(tuple((f"resid_post.{layer}", d_in) for layer in range(3)))
    crosscoder = Ends(input=layers, target=layers)
    return {
        "transcoder": Change(architecture="topk", ends=Ends(input=read, target=written), at_most=1.1),
        "skip transcoder": Change(architecture="topk", ends=Ends(input=read, target=written, skip=True), at_most=1.15),
        "crosscoder, 3 parts": Change(architecture="topk", ends=crosscoder, at_most=1.1),
        "crosscoder, 3 parts, L1": Change(architecture="standard", ends=crosscoder, at_most=1.1),
        "jacobian pair, plain MLP": JacobianPair(architecture="topk", at_most=1.5),
        "jacobian pair, gated MLP": JacobianPair(architecture="topk", d_mlp=8 / 3, gated=True, at_most=1.5),
        "jacobian pair, 512 samples": JacobianPair(architecture="topk", samples=512),
        "matryoshka, 4 levels": Change(
            architecture="batch_topk", terms={"reconstruction": Matryoshka(widths=fourths)}, at_most=1.4
        ),
        "matryoshka, detached": Change(
            architecture="batch_topk", terms={"reconstruction": Matryoshka(widths=fourths, detach=True)}
        ),
        "matryoshka, 10 drawn levels": Change(
            architecture="batch_topk", terms={"reconstruction": SampledMatryoshka(levels=10)}
        ),
        "orthogonal, every 5th step": Change(
            architecture="batch_topk", terms={"penalty": Orthogonality(every=5)}, steps=5, at_most=1.15
        ),
        "orthogonal, every step": Change(architecture="batch_topk", terms={"penalty": Orthogonality(every=1)}),
        "weight_norm": Change(architecture="batch_topk", terms={"penalty": WeightNorm()}),
        "fisher": Change(architecture="topk", terms={"penalty": Fisher(weight=1e-12)}),
        "random_sign": Change(architecture="topk", terms={"penalty": RandomSign(weight=1e-12)}),
        "decorrelation": Change(architecture="topk", terms={"penalty": Decorrelation(weight=1e-12)}),
        "p_anneal": Change(architecture="standard", terms={"sparsity": AnnealedLp(begin=0.0)}),
        "target l0 per sample": Change(architecture="jumprelu", terms={"sparsity": TargetL0(form=TargetForm.sample)}),
        "dense latents": Change(architecture="jumprelu", terms={"density": DenseLatents()}),
    }


def seconds(
    change: Change, options: argparse.Namespace, precision: Precision, clock: Callable[[], float]
) -> tuple[float, float]:
    """Return the seconds of the usual step and of the changed one."""
    if isinstance(change, JacobianPair):
        return pair_seconds(change, options, precision, clock)
    settings, terms = architectures(options.d_sae, options.k)[change.architecture]
    ends = change.ends or Ends.of(options.d_in)
    x = inputs(options.batch, ends.input.width)
    targets = None if ends.same else targets_of(x)
    changed = learner(settings, terms | change.terms, x, True, precision, ends=ends, targets=targets)
    steps = {
        "usual": stepper(learner(settings, terms, x, True, precision), x),
        "changed": stepper(changed, x, targets),
    }

    def several(step: Callable[[], object]) -> None:
        for _ in range(change.steps):
            step()

    t = medians({name: partial(several, step) for name, step in steps.items()}, options.repeats, clock)
    return t["usual"] / change.steps, t["changed"] / change.steps


def pair_seconds(
    change: JacobianPair, options: argparse.Namespace, precision: Precision, clock: Callable[[], float]
) -> tuple[float, float]:
    """Return the seconds of a pair's steps without the Jacobian term and with it."""
    settings, terms = architectures(options.d_sae, options.k)[change.architecture]
    x = inputs(options.batch, options.d_in)
    y, generator = targets_of(x), torch.Generator().manual_seed(2)

    def affine(d_in: int, d_out: int) -> Affine:
        return Affine((torch.randn(d_in, d_out, generator=generator) / d_in**0.5).to(x), x.new_zeros(d_out))

    hidden = round(change.d_mlp * options.d_in)
    into, gate, out = affine(options.d_in, hidden), affine(options.d_in, hidden), affine(hidden, options.d_in)
    mlp = MLP(into=into, out=out, activation=torch.nn.functional.silu, gate=gate if change.gated else None)
    term = JacobianCoupling(JacobianSparsity(weight=1e-12, samples=change.samples), mlp, 1.0, 1.0)
    # A step reads no source, logs nothing and keeps no state.
    nothing, steps = cast(Any, None), {}
    for name, coupling in (("usual", None), ("changed", term)):
        members = [learner(settings, terms, each, True, precision) for each in (x, y)]
        training = Training(
            members, coupling, Reinitialisation(), nothing, Scaling.of(1.0), members[0].settings, nothing, nothing,
            (End.input, End.target),
        )  # fmt: skip
        steps[name] = partial(training.take, x, y)
    t = medians(steps, options.repeats, clock)
    return t["usual"], t["changed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    parser.add_argument("--only", nargs="*", choices=changes(1), metavar="ROW", help="only these rows")
    parser.add_argument("--precision", choices=[each.value for each in Precision], default="fp32")
    parser.add_argument("--cpu-time", action="store_true", help="the process's own time instead of the clock's")
    options = parser.parse_args()
    chosen = changes(options.d_in)
    if options.only:
        chosen = {name: chosen[name] for name in options.only}
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(f"{shape_of(options)}, {options.precision}; medians of {options.repeats} turns\n")
    print(f"{'whole step':<30}{'of':<12}{'usual':>10}{'changed':>10}{'changed/usual':>15}{'at most':>9}")
    for name, change in chosen.items():
        usual, changed = seconds(change, options, Precision(options.precision), clock)
        at_most = "" if change.at_most is None else f"{change.at_most:.2f}"
        print(
            f"{name:<30}{change.architecture:<12}{usual:>9.3f}s{changed:>9.3f}s{changed / usual:>15.2f}{at_most:>9}",
            flush=True,
        )


if __name__ == "__main__":
    main()

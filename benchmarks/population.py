"""The time of a population's step, relative to as many steps of one member, and its share of matching.

    python -m benchmarks.population               # 5 members of 768 -> 3,072, batch 4,096, 64 active latents
    python -m benchmarks.population --batch 500 --k 6     # as in MFR's experiment on GPT-2

All variants are interleaved in one process, so that a drift of the machine affects all alike. Members share the cores
as in a run; without a term they are also stepped one after the other on all cores. Matching is the Hungarian method on
all pairs of members; `match_every` is the number of steps for which partners are kept. Members have either random
directions, for which matching takes longest, or the same directions in another order with noise, at a cosine of 0.8,
as the mutual term makes them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.step import add_shape, inputs, shape_of, wait
from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Scaling
from fsae.autoencoders.topk import TopKSettings
from fsae.couplings.mutual import Mutual, MutualCoupling
from fsae.losses.auxiliary import AuxK
from fsae.losses.objective import Objective
from fsae.losses.reconstruction import SquaredError
from fsae.memory import freed_memory_kept
from fsae.ranges import COUNT, argument
from fsae.sources.synthetic.sparse_sources import SparseSourcesSettings
from fsae.threads import Threads
from fsae.training.checkpoints import Checkpoints
from fsae.training.gradient_learner import GradientLearner
from fsae.training.loop import Training
from fsae.training.resample import Reinitialisation
from fsae.training.settings import AdamSettings


class Unheard:
    """A sink that drops all values."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_message(self, message: str) -> None: ...

    def position(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of population to measure.

    Attributes:
        size: number of members.
        mutual: the term between its members.
        alike: whether members have the same directions.
        side_by_side: whether members share the cores as in a run.
    """

    size: int
    mutual: Mutual = field(default_factory=Mutual)
    alike: bool = False
    side_by_side: bool = True


class Variant:
    """A population in training.

    Attributes:
        seconds: seconds per step, without matching.
        matching: seconds of matching in all steps.
    """

    def __init__(self, options: argparse.Namespace, x: torch.Tensor, kind: Kind, folder: Path):
        # A learning rate too small to change any weight.
        settings = AdamSettings(samples=10**12, batch_size=options.batch, lr=1e-12, log_every=10**9)
        members = []
        for seed in range(kind.size):
            arch = TopKSettings(d_sae=options.d_sae, k=options.k)
            autoencoder = arch.build(options.d_in, torch.Generator().manual_seed(seed)).to(x.device)
            if kind.alike and members:
                _resemble(autoencoder, members[0].autoencoder)
            autoencoder.initialise(lambda: x, scale=1.0)
            objective = Objective({"reconstruction": SquaredError(), "auxiliary": AuxK()})
            members.append(GradientLearner(autoencoder, objective, settings, scale=1.0, seed=seed))
        self._coupling = MutualCoupling(kind.mutual, seed=0) if kind.mutual.weight > 0 else None
        source = SparseSourcesSettings().source(x.device)
        checkpoints = Checkpoints(folder, {}, {})
        self._run = Training(
            members, self._coupling, Reinitialisation(), source, Scaling.of(1.0), settings, Unheard(), checkpoints
        )
        if not kind.side_by_side:
            # A run always chooses the crew for its number of members.
            self._run._threads = Threads()
        self._x = x
        self.seconds: list[float] = []
        self.matching = 0.0

    def step(self) -> None:
        """Step all members once."""
        wait()
        began = time.perf_counter()
        self._run.take(self._x, None)
        wait()
        seconds, matching = time.perf_counter() - began, 0.0
        if self._coupling is not None:
            matching, self._coupling.matching_seconds = self._coupling.matching_seconds, 0.0
        self.seconds.append(seconds - matching)
        self.matching += matching

    def forget(self) -> None:
        """Return the measurements so far."""
        self.seconds, self.matching = [], 0.0


@torch.no_grad()
def _resemble(autoencoder: SparseAutoencoder, other: SparseAutoencoder) -> None:
    rows = other.W_dec[torch.randperm(other.d_sae)]
    autoencoder.W_dec.copy_(
        torch.nn.functional.normalize(rows + 0.75 * torch.randn_like(rows) / other.d_in**0.5, dim=1)
    )
    autoencoder.W_enc.copy_(autoencoder.W_dec.T)


def main() -> None:
    """Measure all variants, interleaved, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    parser.add_argument("--members", type=argument(int, COUNT), default=5)
    parser.add_argument("--match-every", type=argument(int, COUNT), nargs="*", default=[1, 10])
    parser.set_defaults(d_sae=3072)
    options = parser.parse_args()
    x = inputs(options.batch, options.d_in)
    print(f"{shape_of(options)}; {options.repeats} matchings of each, interleaved\n")
    kinds = {
        "one member": Kind(size=1),
        f"{options.members}, no term": Kind(size=options.members),
        f"{options.members}, one after the other": Kind(size=options.members, side_by_side=False),
    }
    for every in options.match_every:
        for alike in (False, True):
            name = f"{options.members}{', alike' * alike}, match_every {every}"
            mutual = Mutual(weight=1e-9, match_every=every)
            kinds[name] = Kind(size=options.members, mutual=mutual, alike=alike)
    with tempfile.TemporaryDirectory() as folder, freed_memory_kept():
        variants = {name: Variant(options, x, kind, Path(folder)) for name, kind in kinds.items()}
        for each in variants.values():
            each.step()
            each.forget()
        for turn in range(options.repeats * max(options.match_every)):
            for name, kind in kinds.items():
                if kind.mutual.weight == 0 or turn < options.repeats * kind.mutual.match_every:
                    variants[name].step()
    one = statistics.median(variants["one member"].seconds)
    print(f"{'':26}{'per step':>10}{'per member':>15}{'matching':>10}")
    for name, each in variants.items():
        matching = each.matching / len(each.seconds)
        whole = statistics.median(each.seconds) + matching
        print(f"{name:26}{whole:>9.3f}s{whole / one:>14.2f}x{matching / whole:>10.0%}")


if __name__ == "__main__":
    main()

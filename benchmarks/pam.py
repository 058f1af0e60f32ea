"""The time of one decoder solution of PAM, relative to one epoch of its encoder's steps on the same vectors.

    python -m benchmarks.pam                      # 1,000,000 vectors, 576 -> 4,096, 64 active latents: about 10 minutes
    python -m benchmarks.pam --tokens 65536 --d-sae 1024 --k 16 --repeats 1

Encoder steps, encoding and gathering of codes are interleaved every few batches, so that a drift of the machine affects
all alike; after an epoch the decoder is solved. Times are per epoch, medians over `--repeats` epochs. A solution is
gathering and solving. Two ratios are shown: without encoding, since streaming gathers the codes of the encoder's own
steps; and with the encoding of all vectors, for a fixed encoder (`trainer.decoder_batches`). Peak memory is measured in
a separate process that gathers and solves, for an eighth of the vectors and for all.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.step import add_shape, shape_of
from fsae.autoencoders.settings import DecoderNorm
from fsae.autoencoders.topk import TopKSettings
from fsae.losses.objective import Objective
from fsae.losses.reconstruction import SquaredError
from fsae.memory import freed_memory_kept
from fsae.ranges import COUNT, argument
from fsae.sparse.codes import Codes
from fsae.training.least_squares import LeastSquares
from fsae.training.pam_learner import PamLearner
from fsae.training.pam_settings import PamSettings

Result = TypeVar("Result")

# Vectors per turn of each kind of work.
_TURN = 16_384


class Epochs:
    """Epochs over the same random vectors, with the time of each kind of work.

    Attributes:
        seconds: seconds per epoch, by kind.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        autoencoder = TopKSettings(d_sae=options.d_sae, k=options.k, decoder_norm=DecoderNorm.free).build(
            options.d_in, torch.Generator().manual_seed(0)
        )
        autoencoder.initialise(lambda: self._vectors(0), scale=1.0)
        # A learning rate too small to change any weight, and a round that does not end.
        settings = PamSettings(
            samples=options.batch * (10**9 + 1),
            batch_size=options.batch,
            lr=1e-12,
            log_every=10**9,
            encoder_batches=10**9,
            decoder_batches=1,
        )
        objective = Objective({"reconstruction": SquaredError()})
        self.member = PamLearner(autoencoder.to(self.device), objective, settings, scale=1.0, seed=0)
        self.member.sparse = True
        self.seconds: dict[str, list[float]] = {"stepping": [], "encoding": [], "gathering": [], "solving": []}

    def run(self, tokens: int, step: bool) -> None:
        """Run one epoch, with or without the encoder's steps."""
        gathered = LeastSquares()
        for kind in self.seconds.values():
            kind.append(0.0)
        batches = tokens // self.options.batch
        in_turn = max(1, _TURN // self.options.batch)
        for first in range(0, batches, in_turn):
            some = [self._vectors(number) for number in range(first, min(first + in_turn, batches))]
            if step:
                self._timed("stepping", lambda some=some: [self.member.step(x, 0) for x in some])
            codes = self._timed("encoding", lambda some=some: [self._encode(x) for x in some])
            pairs = list(zip(codes, some, strict=True))
            self._timed("gathering", lambda pairs=pairs: [gathered.add(*pair) for pair in pairs])
        autoencoder = self.member.autoencoder
        self._timed("solving", lambda: gathered.solve(autoencoder.W_dec, autoencoder.b_dec, alpha=1e-6, mu=1e-3))

    @torch.no_grad()
    def _encode(self, x: Tensor) -> Codes:
        return self.member.autoencoder.encode(x, sparse=True).codes

    def _vectors(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        return torch.randn(self.options.batch, self.options.d_in, generator=generator).to(self.device)

    def _timed(self, kind: str, action: Callable[[], Result]) -> Result:
        self._wait()
        began = time.perf_counter()
        result = action()
        self._wait()
        self.seconds[kind][-1] += time.perf_counter() - began
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def peak_memory(options: argparse.Namespace, tokens: int) -> float:
    """Return the peak memory, in MB, of a process that encodes, gathers and solves."""
    with freed_memory_kept():
        Epochs(options).run(tokens, step=False)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    parser.add_argument("--tokens", type=argument(int, COUNT), default=1_000_000, help="vectors per epoch")
    parser.set_defaults(d_in=576, d_sae=4096, repeats=3)
    options = parser.parse_args()
    print(f"{shape_of(options)}; {options.tokens:,} vectors, medians of {options.repeats} epochs\n")
    epochs = Epochs(options)
    with freed_memory_kept():
        # The first turn warms up and is not counted.
        epochs.run(options.batch, step=True)
        for kind in epochs.seconds.values():
            kind.clear()
        for _ in range(options.repeats):
            epochs.run(options.tokens, step=True)
    taken = {kind: statistics.median(each) for kind, each in epochs.seconds.items()}
    solution = taken["gathering"] + taken["solving"]
    print(f"encoder's steps   {taken['stepping']:8.2f} s")
    print(f"gathering codes   {taken['gathering']:8.2f} s")
    print(f"solving           {taken['solving']:8.2f} s")
    print(f"encoding          {taken['encoding']:8.2f} s\n")
    print(f"solution / steps  {solution / taken['stepping']:8.3f}   with the codes of the encoder's steps")
    print(f"                  {(solution + taken['encoding']) / taken['stepping']:8.3f}   with encoding all vectors\n")
    for tokens in (options.tokens // 8, options.tokens):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(f"peak memory after {tokens:>9,} vectors {pool.apply(peak_memory, (options, tokens)):8.0f} MB")


if __name__ == "__main__":
    main()

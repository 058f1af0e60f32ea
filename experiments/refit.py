"""The effect of one closed-form decoder at the end of runs on MNIST: the control for alternating solutions.

    python -m experiments.refit SWEEP... [--lines source.share trainer.lr] [--alpha 1.1e-10]

Each run's encoder stays as it was trained. W_dec and b_dec are solved for from its codes of all training images, as in
PAM-SGD's last round. For each arm the command prints fvu on the held-out images as trained and as solved for, and the
mean difference with its 95 % interval by Student's t.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import OmegaConf
from torch import Tensor

from experiments.arms import read_arms
from fsae.analysis.intervals import interval_of
from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.evaluation.vectors import evaluate_vectors
from fsae.export.saelens import load_saelens
from fsae.losses.fisher import Fisher
from fsae.ranges import WEIGHT, argument
from fsae.sources.mnist import MNISTSettings
from fsae.training.least_squares import LeastSquares

_BATCH, _HELD_OUT = 1000, 10_000


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="SWEEP")
    parser.add_argument("--lines", nargs="*", default=[], metavar="SETTING")
    parser.add_argument(
        "--alpha", type=argument(float, WEIGHT), default=1.1e-10, help="the ridge, for a mean over images"
    )
    options = parser.parse_args(arguments)
    print("| arm | seeds | as trained | solved for | difference |\n| --- | --- | --- | --- | --- |")
    for arm in read_arms(options.folders, options.lines, ["fvu"]):
        found = np.array([before_and_after(Path(folder), options.alpha) for folder in arm.runs["folder"]])
        before, after = found.mean(0)
        ends = interval_of(found[:, 1] - found[:, 0])
        interval = "" if ends is None else f", {ends[0]:+.2g} to {ends[1]:+.2g}"
        name = ", ".join(f"{each}={arm.settings[each]}" for each in options.lines)
        print(f"| {name} | {len(found)} | {before:.4g} | {after:.4g} | {after - before:+.2g}{interval} |")


def before_and_after(folder: Path, alpha: float) -> tuple[float, float]:
    """Return a run's fvu on held-out images, and its fvu with the decoder solved for.

    Raises:
        SystemExit: the run is not one on MNIST whose decoder's rows may have any norm.
    """
    config = OmegaConf.load(folder / "config.yaml")
    autoencoder = load_saelens(folder / "sae")
    if "share" not in config.source or not isinstance(autoencoder, SparseAutoencoder):
        raise SystemExit(f"{folder} is no sparse autoencoder on MNIST")
    source = MNISTSettings(**config.source).source(torch.device("cpu"))

    def fvu() -> float:
        (measured,) = evaluate_vectors([autoencoder], source.held_out(_HELD_OUT, _BATCH), [Fisher()])
        return measured.scalars["fvu"]

    before = fvu()
    solve_decoder(autoencoder, source.first_vectors(), alpha)
    return before, fvu()


@torch.no_grad()
def solve_decoder(autoencoder: SparseAutoencoder, x: Float[Tensor, "samples d_in"], alpha: float) -> None:
    """Give an autoencoder the decoder of least squared error at its codes of `x`."""
    gathered = LeastSquares()
    for some in x.split(_BATCH):
        gathered.add(autoencoder(some, sparse=True).codes, some)
    solution = gathered.solve(autoencoder.W_dec, autoencoder.b_dec, alpha=alpha)
    autoencoder.set_decoder(solution.W_dec, solution.b_dec)


if __name__ == "__main__":
    main()

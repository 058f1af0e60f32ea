"""The effect of an average over the last steps' weights (EMA) on the error of a training.

    python -m experiments.average experiment=dictionaries/smollm2_small arch.k=40
    python -m experiments.average --betas 0.9 0.99 --seeds 1 2 3 -- experiment=... trainer.decay=0

After each step the average moves by 1 - beta of the way to the weights. For each beta the command prints fvu on
held-out vectors of the last weights and of the average, whose decoder rows get norm 1 again, and the mean difference
with its 95 % interval by Student's t over seeds.
"""

import argparse
from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
import torch

from fsae.analysis.intervals import interval_of
from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Scaling
from fsae.autoencoders.settings import DecoderNorm
from fsae.configuration.composition import composed_settings
from fsae.configuration.schema import RunSettings
from fsae.evaluation.vectors import evaluate_vectors
from fsae.export.folding import fold
from fsae.losses.fisher import Fisher
from fsae.ranges import INNER_SHARE, SEED, argument
from fsae.runs.build import open_sources, training_of
from fsae.sources.source import Source
from fsae.training.interruption import Interruption
from fsae.training.loop import train
from fsae.training.scaling import scaling_of


class Unrecorded:
    """A sink that keeps no values."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_message(self, message: str) -> None: ...

    def position(self) -> int:
        return 0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--betas", nargs="+", type=argument(float, INNER_SHARE), default=[0.9, 0.97, 0.99])
    parser.add_argument("--seeds", nargs="+", type=argument(int, SEED), default=[1, 2, 3, 4, 5])
    parser.add_argument("overrides", nargs="+", help="of a run, without the seed")
    options = parser.parse_args(arguments)
    runs = [composed_settings([*options.overrides, "tracking=none", f"seed={seed}"], {}) for seed in options.seeds]
    with open_sources(runs, lambda: None) as sources:
        pairs = zip(runs, sources, strict=True)
        found = np.array([errors(settings, source, options.betas) for settings, source in pairs])
    print("| beta | seeds | last weights | average | difference |\n| --- | --- | --- | --- | --- |")
    for place, beta in enumerate(options.betas, start=1):
        ends = interval_of(found[:, place] - found[:, 0])
        interval = "" if ends is None else f"{ends[0]:+.2g} to {ends[1]:+.2g}"
        last, average = found[:, 0].mean(), found[:, place].mean()
        print(f"| {beta:g} | {len(found)} | {last:.4g} | {average:.4g} | {interval} |")


def errors(settings: RunSettings, source: Source, betas: Sequence[float]) -> list[float]:
    """Return the fvu of a training's last weights, and of its averages."""
    training = training_of(settings, source, lambda kind: scaling_of(source, kind), None, Unrecorded(), None)
    (member,) = training.members
    autoencoder, update = member.autoencoder, member.update
    assert isinstance(autoencoder, SparseAutoencoder)
    averages = [[each.detach().clone() for each in autoencoder.parameters()] for _ in betas]

    @torch.no_grad()
    def update_all(step: int) -> None:
        update(step)
        for average, beta in zip(averages, betas, strict=True):
            for own, last in zip(average, autoencoder.parameters(), strict=True):
                own.lerp_(last, 1 - beta)

    member.update = update_all
    ((_, error),) = train([training], Interruption())
    if error is not None:
        raise error
    found = [autoencoder]
    for average in averages:
        averaged = deepcopy(autoencoder)
        with torch.no_grad():
            for own, last in zip(averaged.parameters(), average, strict=True):
                own.copy_(last)
        if averaged.settings.decoder_norm is DecoderNorm.unit:
            averaged.normalise_decoder()
        found.append(averaged)
    return [fvu(each, training.scaling, settings, source) for each in found]


def fvu(autoencoder: SparseAutoencoder, scaling: Scaling, settings: RunSettings, source: Source) -> float:
    batches = source.held_out(settings.suite.samples, settings.suite.batch_size)
    (measured,) = evaluate_vectors([fold(autoencoder, scaling).eval()], batches, [Fisher()])
    return measured.scalars["fvu"]


if __name__ == "__main__":
    main()

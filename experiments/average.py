"""The effect of an exponential moving average of the weights (EMA) on the error of a training.

    python -m experiments.average experiment=dictionaries/smollm2_small arch.k=40
    python -m experiments.average --betas 0.9 0.99 --seeds 1 2 3 -- experiment=... trainer.decay=0

After each step the average moves by 1 - beta of the way to the weights and thresholds; the first steps count equally,
so that nothing of the start remains. The decoder rows of an average get norm 1 again. The command prints fvu and l0 on
held-out vectors, and the mean difference of fvu with its 95 % interval by Student's t over seeds.
"""

import argparse
from collections.abc import Sequence
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
from fsae.outputs.metric_log import Unrecorded
from fsae.ranges import INNER_SHARE, SEED, argument
from fsae.runs.build import open_sources, training_of
from fsae.sources.source import Source
from fsae.training.interruption import Interruption
from fsae.training.loop import train
from fsae.training.scaling import scaling_of


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--betas", nargs="+", type=argument(float, INNER_SHARE), default=[0.9, 0.97, 0.99])
    parser.add_argument("--seeds", nargs="+", type=argument(int, SEED), default=[1, 2, 3, 4, 5])
    parser.add_argument("overrides", nargs="+", help="of a run, without the seed")
    options = parser.parse_args(arguments)
    runs = [composed_settings([*options.overrides, "tracking=none", f"seed={seed}"], {}) for seed in options.seeds]
    with open_sources(runs, lambda: None) as sources:
        pairs = zip(runs, sources, strict=True)
        # (seeds, last weights and averages, fvu and l0)
        found = np.array([measured(settings, source, options.betas) for settings, source in pairs])
    print("| weights | seeds | fvu | l0 | difference of fvu |\n| --- | --- | --- | --- | --- |")
    for place, name in enumerate(["last", *(f"beta {beta:g}" for beta in options.betas)]):
        (fvu, l0), differences = found[:, place].mean(0), found[:, place, 0] - found[:, 0, 0]
        ends = interval_of(differences) if place else None
        interval = "" if ends is None else f" ({ends[0]:+.2g} to {ends[1]:+.2g})"
        difference = f"{differences.mean():+.2g}{interval}" if place else ""
        print(f"| {name} | {len(found)} | {fvu:.4g} | {l0:.3g} | {difference} |")


def measured(settings: RunSettings, source: Source, betas: Sequence[float]) -> list[tuple[float, float]]:
    """Return fvu and l0 of a training's last weights, and of its averages."""
    training = training_of(settings, source, lambda kind: scaling_of(source, kind), None, Unrecorded(), None)
    (member,) = training.members
    autoencoder, update = member.autoencoder, member.update
    assert isinstance(autoencoder, SparseAutoencoder)
    averages = [{name: each.clone() for name, each in autoencoder.state_dict().items()} for _ in betas]

    @torch.no_grad()
    def update_all(step: int) -> None:
        update(step)
        for average, beta in zip(averages, betas, strict=True):
            for name, last in autoencoder.state_dict().items():
                average[name].lerp_(last, max(1 - beta, 1 / (step + 1)))

    member.update = update_all
    ((_, error),) = train([training], Interruption())
    if error is not None:
        raise error
    found = [autoencoder]
    for average in averages:
        averaged = deepcopy(autoencoder)
        averaged.load_state_dict(average)
        if averaged.settings.decoder_norm is DecoderNorm.unit:
            averaged.normalise_decoder()
        found.append(averaged)
    return [error_of(each, training.scaling, settings, source) for each in found]


def error_of(
    autoencoder: SparseAutoencoder, scaling: Scaling, settings: RunSettings, source: Source
) -> tuple[float, float]:
    """Return fvu and l0 on held-out vectors."""
    batches = source.held_out(settings.suite.samples, settings.suite.batch_size)
    (vectors,) = evaluate_vectors([fold(autoencoder, scaling).eval()], batches, [Fisher()])
    return vectors.scalars["fvu"], vectors.scalars["l0"]


if __name__ == "__main__":
    main()

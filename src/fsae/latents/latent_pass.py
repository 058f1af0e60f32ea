"""The pass: every part of the data is read once, and the latents of all dictionaries are surveyed in it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.latents.contexts import Contexts
from fsae.latents.hits import HitSizes
from fsae.latents.scan import scan
from fsae.latents.survey import Survey
from fsae.latents.unfinished import Unfinished
from fsae.latents.workers import Share, work
from fsae.progress import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a pass.

    Attributes:
        hits: of every latent.
        cofiring: samples of every latent whose other latents are kept.
        seed: of the sampling.
    """

    hits: HitSizes
    cofiring: int
    seed: int

    def survey(self, autoencoder: Autoencoder, latents: range | None = None) -> Survey:
        """Return an empty survey of a dictionary's latents, or of some of them."""
        latents = range(autoencoder.d_sae) if latents is None else latents
        return Survey(latents, autoencoder.d_sae, self.hits, self.cofiring, self.seed, autoencoder.W_dec.device)


@dataclass(frozen=True, eq=False)
class Surveyed:
    """The dictionaries of one run and the surveys of their latents, or of some of them.

    Attributes:
        autoencoders: in evaluation mode and in raw units.
        surveys: of each.
        unfinished: where the surveys are kept until the pass is complete; None if they are not kept.
    """

    autoencoders: Sequence[Autoencoder]
    surveys: Sequence[Survey]
    unfinished: Unfinished | None = None

    def lacks(self, part: int) -> bool:
        """Return whether a part is still to be read."""
        return part not in self.surveys[0].parts


def run_pass(contexts: Contexts, runs: Sequence[Surveyed], heartbeat: Callable[[], None], workers: int = 1) -> None:
    """Complete the surveys of all runs; parts that an earlier process has read are not read again.

    Args:
        contexts: the data.
        runs: the dictionaries of each run.
        heartbeat: called after each forward pass; may raise to stop. What is complete by then is kept.
        workers: processes that read parts at the same time; one is this process itself.

    Raises:
        OSError: no space is left for the surveys of the parts that are complete.
    """
    for run in runs:
        if run.unfinished is not None:
            run.unfinished.gather(run.surveys)
    parts = [part for part in range(contexts.parts) if any(run.lacks(part) for run in runs)]
    done = contexts.parts - len(parts)
    if done:
        log.info("%d of %d parts of the pass are there already", done, contexts.parts)
    positions = contexts.count * contexts.length
    read = sum(contexts.positions_of(part) for part in range(contexts.parts) if part not in parts)
    progress = Progress("looking at latents", positions, contexts.unit, read)
    alike = all(run.lacks(part) for run in runs for part in parts)
    kept = [run.unfinished for run in runs if run.unfinished is not None]
    if min(workers, len(parts)) > 1 and alike and len(kept) == len(runs):
        work(_shares(contexts, runs, kept, parts, workers), heartbeat, progress.advance)
        for run, unfinished in zip(runs, kept, strict=True):
            unfinished.gather(run.surveys)
    else:
        for part in parts:
            _read(part, contexts, [run for run in runs if run.lacks(part)], heartbeat, progress)
    progress.close()


def _read(
    part: int, contexts: Contexts, runs: Sequence[Surveyed], heartbeat: Callable[[], None], progress: Progress
) -> None:
    """Read a part in this process, and keep the surveys."""

    def beat(positions: int) -> None:
        progress.advance(positions)
        heartbeat()

    autoencoders = [each for run in runs for each in run.autoencoders]
    scan(part, contexts.blocks(part), autoencoders, [each for run in runs for each in run.surveys], beat)
    for run in runs:
        if run.unfinished is not None and contexts.parts > 1:
            run.unfinished.save(run.surveys)


def _shares(
    contexts: Contexts, runs: Sequence[Surveyed], kept: Sequence[Unfinished], parts: Sequence[int], workers: int
) -> list[Share]:
    workers = min(workers, len(parts))
    return [
        Share(
            name=f"worker-{number}",
            parts=parts[number::workers],
            open_contexts=contexts.reopened(),
            dictionaries=[run.autoencoders for run in runs],
            surveys=[[survey.like() for survey in run.surveys] for run in runs],
            unfinished=kept,
            threads=max(1, torch.get_num_threads() // workers),
        )
        for number in range(workers)
    ]

"""Slices: the latents of a dictionary are surveyed some after the others, so that memory is enough for any width."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.latents.contexts import Contexts
from fsae.latents.latent_pass import Sizes, Surveyed, run_pass
from fsae.latents.survey import Survey
from fsae.latents.unfinished import Unfinished


class Slices:
    """The surveys of one run's dictionaries, slice by slice.

    Slice i of n has the latents from d_sae i / n to d_sae (i + 1) / n of every dictionary, and the data are read once
    per slice. If there are several, a slice is in memory while its latents are surveyed, and on disk afterwards. The
    number of slices changes no byte of the findings.

    Args:
        autoencoders: in evaluation mode and in raw units.
        sizes: of the surveys.
        count: slices; several need a folder.
        folder: of the run, where surveys are kept until `close`; None if they are in memory only.
        key: what decides the surveys: weights, data and sizes.
    """

    def __init__(
        self, autoencoders: Sequence[Autoencoder], sizes: Sizes, count: int, folder: Path | None = None, key: str = ""
    ):
        assert count == 1 or folder is not None
        self.autoencoders, self.count, self._sizes, self._key = autoencoders, count, sizes, key
        self._folder = None if folder is None else folder / "latents.unfinished"
        self._in_memory: Sequence[Survey] = ()
        self._counts: list[list[np.ndarray]] = [[] for _ in autoencoders]

    def surveyed(self, number: int) -> Surveyed:
        """Return the dictionaries with new surveys of a slice, for `run_pass`."""
        surveys = [self._empty(each, number) for each in self.autoencoders]
        return Surveyed(self.autoencoders, surveys, self._unfinished(number))

    def complete(self, surveyed: Surveyed, is_on_disk: bool) -> None:
        """Take over the complete surveys of a slice, in the order of the slices."""
        for counts, survey in zip(self._counts, surveyed.surveys, strict=True):
            counts.append(survey.tally.count.cpu().numpy())
        if self.count == 1:
            self._in_memory = surveyed.surveys
        elif not is_on_disk:
            assert surveyed.unfinished is not None
            surveyed.unfinished.save(surveyed.surveys)

    def counts(self, dictionary: int) -> Int[np.ndarray, " d_sae"]:
        """Return the samples on which each latent of a dictionary is on."""
        return np.concatenate(self._counts[dictionary])

    def surveys(self, dictionary: int) -> Iterator[Survey]:
        """Yield the surveys of a dictionary's slices."""
        if self.count == 1:
            yield self._in_memory[dictionary]
            return
        for number in range(self.count):
            survey = self._empty(self.autoencoders[dictionary], number)
            unfinished = self._unfinished(number)
            assert unfinished is not None
            unfinished.load([survey], dictionary)
            yield survey
            # Before the next one takes its memory.
            del survey

    def close(self) -> None:
        """Drop the surveys, in memory and on disk: the findings are written."""
        self._in_memory = ()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _empty(self, autoencoder: Autoencoder, number: int) -> Survey:
        first, end = (autoencoder.d_sae * each // self.count for each in (number, number + 1))
        return self._sizes.survey(autoencoder, range(first, end))

    def _unfinished(self, number: int) -> Unfinished | None:
        if self._folder is None:
            return None
        folder = self._folder if self.count == 1 else self._folder / f"slice-{number}-of-{self.count}"
        return Unfinished(folder, self._key)


def survey_slices(contexts: Contexts, runs: Sequence[Slices], heartbeat: Callable[[], None], workers: int = 1) -> None:
    """Complete the surveys of all runs, which have the same number of slices; see `run_pass`."""
    for number in range(runs[0].count):
        _survey(contexts, runs, number, heartbeat, workers)


def _survey(
    contexts: Contexts, runs: Sequence[Slices], number: int, heartbeat: Callable[[], None], workers: int
) -> None:
    """Survey one slice; its memory is free when the function returns."""
    surveyed = [run.surveyed(number) for run in runs]
    run_pass(contexts, surveyed, heartbeat, workers)
    for run, own in zip(runs, surveyed, strict=True):
        run.complete(own, is_on_disk=contexts.parts > 1)

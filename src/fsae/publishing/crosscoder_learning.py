"""A run's crosscoder in the layout of science-of-finetuning's crosscoder_learning."""

from pathlib import Path

from fsae.export.releases.crosscoder_learning import PROVENANCE, save_crosscoder
from fsae.files import share_as_folder
from fsae.publishing.new_folder import new_folder
from fsae.surface.dictionary import load


def write_crosscoder(run: Path, folder: Path, member: int | None = None) -> str:
    """Write the crosscoder of a run.

    Args:
        run: the run's folder.
        folder: the new folder; an earlier export there is replaced.
        member: of a population.

    Returns:
        The name of crosscoder_learning's class that opens the folder.

    Raises:
        ValueError: the run has no crosscoder that the layout can hold, or something else is in the folder.
        OSError: no space is left; an earlier export is untouched.
    """
    dictionary = load(run, member=member)
    k = None if dictionary.density is None else max(1, round(dictionary.density.sum().item()))
    with new_folder(folder, PROVENANCE) as unfinished:
        kind = save_crosscoder(dictionary.autoencoder, unfinished, dictionary.provenance, k, run)
        for path in unfinished.iterdir():
            share_as_folder(path)
    return kind

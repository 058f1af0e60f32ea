"""The dictionaries at other sites that join a run's own in a circuit."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.export.dictionary_files import load_members, read_provenance
from fsae.language_models.sites import Site
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.sweep_folder import JobState, is_job, read_sweep

log = logging.getLogger(__name__)

_SITE_KEYS = frozenset({"site", "site.name", "site.layer", "site.head"})


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A run whose dictionaries are at another site of the same language model.

    Attributes:
        folder: of the run.
        site: of its dictionaries.
        autoencoders: one, or the members of a population.
    """

    folder: Path
    site: Site
    autoencoders: Sequence[Autoencoder]


def same_but_for_site(folder: Path) -> list[Path]:
    """Return the other jobs of a run's sweep whose settings differ from its own in the site alone.

    None if the run is no job of a sweep, or if one of these jobs has not finished: a circuit is over all of them.
    """
    if not is_job(folder):
        return []
    jobs = read_sweep(folder.parent).all_jobs()
    own = next((_without_site(job.overrides) for job in jobs if job.folder == folder), None)
    alike = [job for job in jobs if job.folder != folder and _without_site(job.overrides) == own]
    unfinished = [job.folder.name for job in alike if job.state() is not JobState.finished]
    if unfinished:
        log.warning(
            "the circuit of %s is over its own site alone: job %s, which differs from it in the site alone, has not "
            "finished", folder, ", ".join(unfinished),
        )  # fmt: skip
        return []
    return [job.folder for job in alike]


def _without_site(overrides: Sequence[str]) -> list[str]:
    return sorted(each for each in overrides if each.lstrip("+").partition("=")[0] not in _SITE_KEYS)


def read_neighbour(folder: Path) -> Neighbour:
    """Return the dictionaries of a finished run, or in a folder in SAELens' format.

    Raises:
        ValueError: the folder has none, or they name no site.
    """
    exported = RunFolder(folder).sae if RunFolder(folder).sae.is_dir() else folder
    autoencoders = load_members(exported)
    provenance = read_provenance(exported if len(autoencoders) == 1 else exported / "0")
    if provenance.hook_name is None:
        raise ValueError(
            f"the autoencoder in {exported} names no site (hook_name), so it cannot join a circuit; choose one that "
            "was trained on a language model"
        )
    return Neighbour(folder, Site.of_hook(provenance.hook_name, provenance.hook_head_index), autoencoders)

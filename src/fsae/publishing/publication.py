"""A publication: the files of a run for a repository on the Hugging Face hub."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

import fsae
from fsae.export.saelens import CONFIG
from fsae.files import whole_files
from fsae.language_models.sites import Site
from fsae.outputs.results import read_results
from fsae.outputs.run_folder import RunFolder
from fsae.publishing.hub_repository import CARD, MARK, PAGES, check_repo
from fsae.publishing.model_card import CardFacts, model_card
from fsae.surface.dictionary import Dictionary, load

_PICTURES = {"training.png": "Training curves", "firing.png": "Histogram of the latents' densities"}
_PAGE_FILES = ("index.html", "pages-*/*")


@dataclass(frozen=True)
class Publication:
    """Files for a repository.

    Attributes:
        repo: the repository's name on the hub.
        files: contents, or files of this machine, by their path in the repository.
        folder: the folder in the repository that holds all of them, except for a card at the root.
        card: the path of the card.
    """

    repo: str
    files: Mapping[str, Path | bytes]
    folder: str
    card: str

    @property
    def text(self) -> str:
        """The card."""
        content = self.files[self.card]
        assert isinstance(content, bytes)
        return content.decode()

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield each file's path in the repository and its bytes."""
        for path, content in self.files.items():
            yield path, len(content) if isinstance(content, bytes) else content.stat().st_size


def publication_of(
    run: Path,
    repo: str,
    *,
    folder: str | None = None,
    licence: str | None = None,
    pages: bool = False,
    member: int | None = None,
    as_part: bool = False,
) -> Publication:
    """Return the files of a finished run: its dictionary in SAELens' layout, a card, pictures and numbers.

    Args:
        run: the run's folder.
        repo: the repository's name on the hub.
        folder: in the repository; None for the site's hook, as SAELens names it, or "sae" without a language model.
        licence: the licence's identifier on the hub.
        pages: whether the pages of the latents are among the files.
        member: of a population; None for all members.
        as_part: whether the card is that of the folder, because the repository has one of its own.

    Raises:
        ValueError: no possible name of a repository, the folder has no run, no dictionary or no numbers, or the pages
            are wanted and there are none.
    """
    check_repo(repo)
    files = RunFolder(run)
    dictionaries = _dictionaries(run, member)
    first = next(iter(dictionaries.values()))
    settings = first.settings
    if settings is None:
        raise ValueError(
            f"{run} is not the folder of a run that trained a dictionary, and a card is made of a training; name such "
            "a run"
        )
    folder = folder or _default_folder(first.site)
    _check_folder(folder)
    found: dict[str, Path | bytes] = {}
    for place, dictionary in dictionaries.items():
        assert dictionary.folder is not None
        inner = folder if len(dictionaries) == 1 else f"{folder}/{place}"
        found |= {f"{inner}/{path.name}": path for path in whole_files(dictionary.folder)}
    card = f"{folder}/{CARD}" if as_part else CARD
    pictures = {name: caption for name, caption in _PICTURES.items() if (files.plots / name).is_file()}
    found |= {f"{folder}/{name}": files.plots / name for name in pictures}
    if not files.results.is_file():
        raise ValueError(f"{run} has no {files.results.name}; measure it first, with python -m fsae.evaluate {run}")
    found[f"{folder}/{MARK}"] = files.results
    if pages:
        found |= {f"{folder}/{PAGES}/{name}": path for name, path in _pages(files, member).items()}
    text = model_card(
        CardFacts(
            repo=repo,
            folder=folder,
            dictionaries=list(dictionaries.values()),
            settings=settings,
            written_settings=yaml.safe_load(files.config.read_text(encoding="utf-8")),
            results=read_results(files.results),
            licence=licence,
            pictures={name if as_part else f"{folder}/{name}": caption for name, caption in pictures.items()},
            pages=f"{folder}/{PAGES}" if pages else None,
            version=fsae.__version__,
        )
    )
    return Publication(repo, {card: text.encode(), **found}, folder, card)


def _dictionaries(run: Path, member: int | None) -> dict[int, Dictionary]:
    """Return the run's dictionaries, by number."""
    members = sorted(int(path.parent.name) for path in RunFolder(run).sae.glob(f"[0-9]*/{CONFIG}"))
    if member is None and members:
        return {each: load(run, member=each) for each in members}
    return {0: load(run, member=member)}


def _default_folder(site: Site | None) -> str:
    return "sae" if site is None else site.hook_name


def _check_folder(folder: str) -> None:
    parts = folder.split("/")
    if not all(part.strip(".") and part.isprintable() for part in parts) or any(set("\\*?[]#%") & set(folder)):
        raise ValueError(f"--folder is {folder!r}; name a folder in the repository, such as blocks.8.hook_resid_pre")


def _pages(files: RunFolder, member: int | None) -> dict[str, Path]:
    """Return the files of the latents' pages, by their path below the folder of the pages."""
    folder = files.latents if member is None else files.latents / str(member)
    # A population has a folder per member.
    found = sorted(
        {path for pattern in _PAGE_FILES for root in (pattern, f"[0-9]*/{pattern}") for path in folder.glob(root)}
        & {*whole_files(folder)}
    )
    if not found:
        raise ValueError(
            f"{folder} has no pages; a run on a language model writes them if it is evaluated by latents, as in "
            f"python -m fsae.evaluate {files.path} eval=[latents]"
        )
    return {str(path.relative_to(folder)): path for path in found}

"""The files of a dictionary in SAELens' format or in the layout of a release, and the members of a population."""

from pathlib import Path

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.export.provenance import Provenance
from fsae.export.releases.choices import RELEASES, SAELENS
from fsae.export.saelens import CONFIG
from fsae.export.stored import Stored


def is_dictionary(path: Path) -> bool:
    """Return whether the path looks like a dictionary in one of the layouts that are read."""
    return (path / CONFIG).is_file() or any(release.holds(path) for release in RELEASES)


def stored_at(path: Path) -> Stored:
    """Return the dictionary at a path.

    Raises:
        ValueError: there is no file or folder, it has no layout that is known, or its settings are damaged.
    """
    for release in RELEASES:
        if release.holds(path):
            return release.read(path)
    if (path / CONFIG).is_file() or not path.exists():
        return SAELENS.read(path)
    within = sorted(path.iterdir()) if path.is_dir() else []
    inside = [each for each in within if any(release.holds(each) for release in RELEASES)]
    if inside:
        raise ValueError(f"{path} holds {len(inside)} dictionaries; name one of them, such as {inside[0]}")
    names = [each.name for each in within] or [path.name] * path.is_file()
    found = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "an empty folder"
    layouts = "; ".join(f"{release.name} ({release.files})" for release in RELEASES)
    raise ValueError(f"{path}: expected a dictionary, found {found}; the layouts that are read are {layouts}")


def load_autoencoder(path: Path) -> Autoencoder:
    """Return the autoencoder at a path, in evaluation mode, for raw activations; see `Stored.autoencoder`.

    Raises:
        ValueError: as `stored_at` and `Stored.autoencoder`.
    """
    return stored_at(path).autoencoder()


def members_at(path: Path) -> list[Path]:
    """Return the path of a dictionary, or a population's folders `0`, `1`, ... in it."""
    if is_dictionary(path) or not (path / "0").is_dir():
        return [path]
    numbers = sorted(int(each.name) for each in path.iterdir() if each.name.isdecimal())
    return [path / str(number) for number in numbers]


def load_members(path: Path) -> list[Autoencoder]:
    """Return the autoencoder at a path, or a population's members in folders `0`, `1`, ... of it.

    Raises:
        ValueError: as `load_autoencoder`.
    """
    return [load_autoencoder(each) for each in members_at(path)]


def read_provenance(path: Path) -> Provenance:
    """Return the provenance of the dictionary at a path.

    Raises:
        ValueError: as `stored_at` and `Stored.provenance`.
    """
    return stored_at(path).provenance()

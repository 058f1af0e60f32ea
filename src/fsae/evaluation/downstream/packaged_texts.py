"""Labelled texts that the package sae-probes contains: data sets of two classes and of more, and shifted versions."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fsae.evaluation.downstream.labelled_texts import LabelledTexts, labelled
from fsae.sources.rows import csv_rows

_TWO, _MORE = "Binary Classification", "Multiclass Classification"
# The authors found these, of AG News, to be about news against code (github.com/JoshEngels/SAE-Probes, README).
DOUBTFUL = ("161_agnews_0", "162_agnews_1", "163_agnews_2")


def packaged_names() -> list[str]:
    """Return the names of the data sets of two classes, in the package's order.

    Raises:
        ValueError: sae-probes is not installed.
    """
    return list(_files(_TWO))


def packaged_texts(name: str) -> LabelledTexts:
    """Return a data set of two classes (Kantamneni et al. 2025, arXiv 2502.16681).

    Args:
        name: for instance "5_hist_fig_ismale".

    Raises:
        ValueError: sae-probes is not installed, or has no data set of this name.
    """
    files = _files(_TWO)
    if name not in files:
        raise ValueError(
            f"sae-probes has no data set {name!r} of two classes; it has {', '.join(list(files)[:3])} and "
            f"{len(files) - 3} others: see docs/evaluations/probing.md"
        )
    return _read(name, files[name])


def packaged_classes(name: str) -> LabelledTexts:
    """Return a data set of three classes or more.

    Args:
        name: for instance "97_news_class".

    Raises:
        ValueError: sae-probes is not installed, or has no data set of this name.
    """
    files = _files(_MORE)
    if name not in files:
        raise ValueError(f"sae-probes has no data set {name!r} of more than two classes; it has {', '.join(files)}")
    return _read(name, files[name])


def shifted_names() -> list[str]:
    """Return the names of the data sets that have a shifted version, in the order of their numbers.

    Raises:
        ValueError: sae-probes is not installed.
    """
    names = [path.name.removesuffix("_OOD.csv.zst") for path in (_folder() / "OOD data").glob("*_OOD.csv.zst")]
    return sorted(names, key=lambda name: int(name.partition("_")[0]))


def shifted_texts(name: str) -> LabelledTexts:
    """Return the shifted version of a data set: the same question about texts of another kind or language.

    Raises:
        ValueError: sae-probes is not installed, or has no shifted version of this data set.
    """
    names = shifted_names()
    if name not in names:
        raise ValueError(f"sae-probes has no shifted version of {name!r}; it has those of {', '.join(names)}")
    return _read(f"{name} (shifted)", _folder() / "OOD data" / f"{name}_OOD.csv.zst")


@cache
def _files(kind: str) -> dict[str, Path]:
    """Return the file of each data set of one kind."""
    folder = _folder()
    rows = csv_rows(folder / "probing_datasets_MASTER.csv.zst")
    paths = [folder / f"{row['Dataset save name']}.zst" for row in rows if row["Data type"] == kind]
    return {path.name.removesuffix(".csv.zst"): path for path in paths}


def _read(name: str, path: Path) -> LabelledTexts:
    return labelled(name, ((row["prompt"], row["target"]) for row in csv_rows(path)))


def _folder() -> Path:
    # Importing the package would import its own probes and language models; only its data are read.
    spec = find_spec("sae_probes")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "the packaged labelled texts are in sae-probes, which is not installed: pip install --no-deps "
            "sae-probes==0.4.2, or name data of your own"
        )
    return Path(spec.submodule_search_locations[0]) / "data"

"""Documents: text or token ids, streamed from files or the hub, split into a training and a held-out part."""

import glob
import logging
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from fsae.language_models.hub import RepoKind, is_hub_name, require_repo, resolved_revision
from fsae.language_models.identity import folder_identity, listing_digest
from fsae.naming import last_part, word
from fsae.ranges import INNER_SHARE, Ranged, between

if TYPE_CHECKING:
    from datasets import IterableDataset

log = logging.getLogger(__name__)

# Where neither the settings nor an existing autoencoder say how long a row is.
_TOKENS_PER_ROW = 128


class DatasetFormat(Enum):
    """Where documents come from.

    Attributes:
        python_source: the standard library of the running Python, one document per file, without its tests.
        text: files, one document each.
        json: .json and .jsonl files, also gzipped.
        parquet: .parquet files.
        hub: a data set on the hub, or a folder laid out like one.
    """

    python_source = "python_source"
    text = "text"
    json = "json"
    parquet = "parquet"
    hub = "hub"


class Part(Enum):
    """The two parts of every data set; a document's content alone decides which one it is in."""

    train = "train"
    held_out = "held_out"


@dataclass(frozen=True, kw_only=True)
class DatasetSettings(Ranged, group="dataset"):
    """A data set, and how its documents are cut into rows of tokens.

    Attributes:
        path: a folder, a file or a glob for text, json and parquet; a hub name or a local copy's folder for hub.
        config, split, data_dir, revision: which part of a hub data set.
        text_column, tokens_column: exactly one; with tokens_column the data set is tokenised already.
        label_column: a column that is kept with each document.
        held_out: the share of documents kept for evaluation.
        context: tokens per row; null for 128, or in task=eval what the autoencoder's context_size says.
        prepend_bos: whether each row begins with the model's BOS. Null for the model's own convention, or in task=eval
            what the autoencoder says; token ids of a data set that is tokenised already are then taken as they are.
        skip_positions: positions at the start of each row that are left out of training and evaluation. Most language
            models make an attention sink of the first one, whose activations are ten times as long as any other's
            and all alike: kept, they would be most of the variance there is to explain.
        exclude_special_tokens: leave BOS, separators and other special tokens out of training and evaluation; they
            stay in the rows that the model reads.

    Raises:
        ValueError: a path too many or too few, both or neither column, a share outside (0, 1), a context below 2 or
            with no position left.
    """

    format: DatasetFormat
    path: str | None = None
    config: str | None = None
    split: str = "train"
    data_dir: str | None = None
    revision: str | None = None
    text_column: str | None = "text"
    tokens_column: str | None = None
    label_column: str | None = None
    held_out: float = field(default=0.1, metadata=INNER_SHARE)
    context: int | None = field(default=None, metadata=between(least=2, most=2**24, meaning="a number of tokens"))
    prepend_bos: bool | None = None
    skip_positions: int = field(default=1, metadata=between(least=0, most=2**24))
    exclude_special_tokens: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.format is DatasetFormat.python_source and self.path is not None:
            raise ValueError(
                f"dataset.path is {self.path!r}, but python_source reads the running Python's standard library; "
                "for other files use dataset=text_files"
            )
        if self.format is not DatasetFormat.python_source and not self.path:
            where = "a hub name or a folder" if self.format is DatasetFormat.hub else "a folder or a glob"
            raise ValueError(f"dataset.path is not set; dataset.format={self.format.name} needs {where}")
        if (self.text_column is None) == (self.tokens_column is None):
            raise ValueError(
                f"dataset.text_column is {self.text_column!r} and dataset.tokens_column is {self.tokens_column!r}; "
                "name exactly one and set the other to null"
            )
        if self.skip_positions >= self.tokens_per_row:
            raise ValueError(
                f"dataset.skip_positions is {self.skip_positions}; it must leave some of the {self.tokens_per_row} "
                "positions of dataset.context"
            )

    @property
    def name(self) -> str:
        """What runs and tables call the data set: the last part of its path, with the part of it that is read."""
        if self.path is None:
            return self.format.name
        parts = [self.config, self.data_dir] if self.format is DatasetFormat.hub else []
        return "-".join([last_part(self.path), *(word(part) for part in parts if part)])

    @property
    def tokens_per_row(self) -> int:
        """`context`, or what null stands for."""
        return _TOKENS_PER_ROW if self.context is None else self.context


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document: its text, or its token ids where the data set is tokenised already, and its label if it has one."""

    content: str | list[int]
    label: Any = None


class Documents(Iterator[Document]):
    """One part of a data set, document by document; its position can be saved and restored exactly.

    Attributes:
        name: what the data set is called in messages.
        tokenised: whether its documents are token ids.
        labelled: whether they have labels.

    Raises:
        ValueError: while iterating: a column is not there, or a whole pass found no document.
    """

    def __init__(self, dataset: "IterableDataset", settings: DatasetSettings, part: Part):
        self._dataset = dataset
        self._settings = settings
        self._part = part
        self._start = dataset.state_dict()
        self.name = settings.name
        self.tokenised = settings.tokens_column is not None
        self.labelled = settings.label_column is not None
        self.rewind()

    def rewind(self) -> None:
        """Go back to the first document."""
        self._dataset.load_state_dict(self._start)
        self._rows = iter(self._dataset)
        self._seen = self._kept = 0

    def __next__(self) -> Document:
        while (row := self._next_row()) is not None:
            self._seen += 1
            document = self._document(row)
            if _part_of(document.content, self._settings.held_out) is self._part:
                self._kept += 1
                return document
        if self._kept == 0:
            raise ValueError(self._emptiness())
        raise StopIteration

    def state_dict(self) -> dict[str, Any]:
        """The position after the last document returned."""
        return {"rows": self._dataset.state_dict(), "seen": self._seen, "kept": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position of the same data set."""
        self._dataset.load_state_dict(state["rows"])
        self._rows = iter(self._dataset)
        self._seen, self._kept = state["seen"], state["kept"]

    def _next_row(self) -> dict[str, Any] | None:
        try:
            return next(self._rows, None)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"data set {self.name} could not be read on after row {self._seen} of "
                f"{_whereabouts(self._settings)}: {_first_line(error)}"
            ) from error

    def _document(self, row: dict[str, Any]) -> Document:
        settings = self._settings
        column, kind = (settings.tokens_column, list) if self.tokenised else (settings.text_column, str)
        assert column is not None
        for wanted in (column, settings.label_column):
            if wanted is not None and wanted not in row:
                raise ValueError(
                    f"data set {self.name} has no column {wanted!r}; it has {', '.join(row)}: "
                    "set dataset.text_column, dataset.tokens_column or dataset.label_column"
                )
        content = row[column]
        if not isinstance(content, kind):
            raise ValueError(
                f"data set {self.name}, row {self._seen}: column {column!r} holds {type(content).__name__}, "
                f"not {'text' if kind is str else 'token ids'}"
            )
        return Document(content=content, label=row[settings.label_column] if settings.label_column else None)

    def _emptiness(self) -> str:
        if self._seen == 0:
            return f"data set {self.name} is empty: no document in {_whereabouts(self._settings)}"
        return (
            f"data set {self.name}: none of its {self._seen} documents is in the part {self._part.value} "
            f"(dataset.held_out is {self._settings.held_out}); use more documents or another share"
        )


def open_documents(settings: DatasetSettings, part: Part) -> Documents:
    """Open one part of a data set.

    Files are read in a random order, always the same one, so that runs with different seeds share their activations;
    data sets in the hub's layout in their own order. Which part a document is in depends on its content only: copies
    of one document never end up in both.

    Raises:
        ValueError: no such folder, a glob without matches, hub unreachable, gated without access, no such
            configuration or split.
    """
    if settings.format is DatasetFormat.hub:
        dataset = _open_hub(settings)
    else:
        files = dataset_files(settings)
        Random(0).shuffle(files)
        dataset = _open_files(settings, files)
    return Documents(dataset, settings, part)


def dataset_identity(settings: DatasetSettings) -> dict[str, str]:
    """What tells these documents from any others: a hub commit, or a digest of the files' names, sizes and times.

    Raises:
        ValueError: no such folder, a glob without matches, hub unreachable, gated without access.
    """
    path = Path(settings.path or "").expanduser()
    if settings.format is not DatasetFormat.hub:
        files = [Path(file) for file in dataset_files(settings)]
        return {"files": listing_digest(Path(os.path.commonpath([file.parent for file in files])), files)}
    if path.is_dir():
        return folder_identity(path)
    return {
        "hub": str(settings.path),
        "revision": resolved_revision(str(settings.path), revision=settings.revision, kind=RepoKind.dataset),
    }


def _open_hub(settings: DatasetSettings) -> "IterableDataset":
    assert settings.path is not None
    path = settings.path
    if Path(path).expanduser().is_dir():
        if is_hub_name(path):
            log.warning("dataset.path=%s: read from the folder %s, not from the hub", path, Path(path).resolve())
        # datasets would read a folder's name relative to the working directory, too, but does not expand a tilde.
        path = str(Path(path).expanduser().resolve())
    elif is_hub_name(path):
        require_repo(path, revision=settings.revision, kind=RepoKind.dataset)
    else:
        raise ValueError(
            f"dataset.path: {path!r} is no folder on this machine (seen from {Path.cwd()}) and no hub name "
            "(owner/name); correct the path"
        )
    return _load(
        settings,
        path,
        name=settings.config,
        data_dir=settings.data_dir,
        split=settings.split,
        revision=settings.revision,
    )


def _open_files(settings: DatasetSettings, files: list[str]) -> "IterableDataset":
    # datasets takes each name for a pattern, so that brackets in a file's name must be escaped.
    data_files = [glob.escape(file) for file in files]
    if settings.format in (DatasetFormat.text, DatasetFormat.python_source):
        reader = {"sample_by": "document", "encoding_errors": "replace"}
        return _load(settings, "text", data_files=data_files, split="train", **reader)
    # Left to itself the parquet reader takes a row group at a time, and fails on a file that has none.
    reader = {"batch_size": 1000} if settings.format is DatasetFormat.parquet else {}
    return _load(settings, settings.format.value, data_files=data_files, split="train", **reader)


def _load(settings: DatasetSettings, path: str, **arguments: Any) -> "IterableDataset":
    import datasets
    from datasets import config

    # Otherwise opening files on this machine, too, asks the hub to count it.
    setattr(config, "HF_UPDATE_DOWNLOAD_COUNTS", False)  # noqa: B010
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        dataset = datasets.load_dataset(path, streaming=True, **arguments)
    except (OSError, ValueError, RuntimeError) as error:
        # No such configuration or split, no data files, a loading script: datasets says which in its first line.
        raise ValueError(
            f"data set {settings.name} could not be opened from {_whereabouts(settings)}: {_first_line(error)}"
        ) from error
    finally:
        if not bars:
            datasets.enable_progress_bars()
    assert isinstance(dataset, datasets.IterableDataset)
    return dataset


def dataset_files(settings: DatasetSettings) -> list[str]:
    """The files of a data set, sorted: the same on every machine before they are permuted."""
    if settings.format is DatasetFormat.python_source:
        return standard_library()
    assert settings.path is not None
    pattern = Path(settings.path).expanduser()
    if glob.has_magic(str(pattern)) and not pattern.exists():
        files = [Path(name) for name in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207 - absolute
    elif pattern.is_dir():
        files = [path for path in pattern.rglob("*") if _readable(path.relative_to(pattern), settings.format)]
    elif pattern.is_file():
        files = [pattern]
    else:
        raise ValueError(
            f"dataset.path: there is no file or folder {pattern} (seen from {Path.cwd()}); correct the path"
        )
    files = sorted(str(path.resolve()) for path in files if path.is_file())
    if not files:
        raise ValueError(
            f"data set {settings.name} is empty: {pattern} matches no {settings.format.value} file; "
            "correct dataset.path"
        )
    return files


def _readable(path: Path, format: DatasetFormat) -> bool:
    """Whether a file in a folder belongs to the data set: by its ending, and never a hidden one."""
    if any(part.startswith(".") for part in path.parts):
        return False
    endings = {DatasetFormat.json: (".json", ".jsonl", ".json.gz", ".jsonl.gz"), DatasetFormat.parquet: (".parquet",)}
    return format is DatasetFormat.text or path.name.endswith(endings[format])


def standard_library() -> list[str]:
    """The files of the running Python's standard library, sorted, without its tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    return sorted(str(path) for path in root.rglob("*.py") if not left_out & set(path.relative_to(root).parts))


def _whereabouts(settings: DatasetSettings) -> str:
    if settings.format is DatasetFormat.python_source:
        return sysconfig.get_path("stdlib")
    details = [f"{key}={value}" for key in ("config", "data_dir") if (value := getattr(settings, key)) is not None]
    if settings.format is DatasetFormat.hub:
        details.append(f"split={settings.split}")
    return f"{settings.path} ({', '.join(details)})" if details else str(settings.path)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _part_of(content: str | list[int], held_out: float) -> Part:
    data = (
        content.encode("utf-8", "surrogatepass") if isinstance(content, str) else ",".join(map(str, content)).encode()
    )
    position = int.from_bytes(blake2b(data, digest_size=8).digest(), "big") / 2**64
    return Part.held_out if position < held_out else Part.train

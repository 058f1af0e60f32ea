"""Documents: text, token ids or chats, streamed from files or the hub, split into a training and a held-out part."""

import json
import logging
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, cast

from fsae.errors import first_line
from fsae.language_models.hub import RepoKind, is_hub_name, require_repo, resolved_revision
from fsae.language_models.identity import folder_identity, listing_digest
from fsae.naming import last_part, word
from fsae.ranges import COUNT_OR_NONE, INNER_SHARE, Ranged, between
from fsae.sources.chats import Message, messages_of
from fsae.sources.files import files_at, standard_library
from fsae.sources.rows import FileRows, Row, parquet_columns
from fsae.sources.shard import Part

if TYPE_CHECKING:
    from datasets import IterableDataset

log = logging.getLogger(__name__)

# The mask column that tokenizers write next to the token ids; it is used if the settings name no other.
_USUAL_MASK = "attention_mask"
_CONTENT_KEYS = "dataset.text_column, dataset.tokens_column or dataset.chat_column"
# Tokens per row if neither the settings nor an existing autoencoder state it.
_TOKENS_PER_ROW = 128


class DatasetFormat(Enum):
    """Formats of data sets.

    Attributes:
        python_source: the standard library of the running Python without its tests, one document per file.
        text: text files, one document per file.
        json: .json and .jsonl files, also gzipped.
        parquet: .parquet files.
        hub: a data set on the hub, or a folder laid out like one.
    """

    python_source = "python_source"
    text = "text"
    json = "json"
    parquet = "parquet"
    hub = "hub"


@dataclass(frozen=True, kw_only=True)
class DatasetSettings(Ranged, group="dataset"):
    """Settings of a data set, and of how its documents are cut into rows of tokens.

    Attributes:
        path: a folder, a file or a glob for text, json and parquet; a hub name or a local copy's folder for hub.
        config, split, data_dir, revision: which part of a hub data set.
        text_column, tokens_column, chat_column: the column of the documents; at most one may be set, and null for all
            three means `text`. Documents are text, token ids, or lists of messages with role and content, which the
            tokenizer's chat template writes out.
        mask_column: a column of the same length as the token ids, with 1 for text and 0 for padding; padding is
            dropped before anything reads it. Null for attention_mask if the data set has it.
        chat_roles: the roles whose messages are trained and evaluated on; the model reads everything. Null for every
            position of a chat.
        label_column: a column that is kept with each document.
        max_invalid_rows: how many rows of one pass over the data set may have no usable document (null, no text, a
            chat that the template cannot write). They are left out and counted; one more ends the run.
        held_out: the share of documents kept for evaluation.
        context: tokens per row. Null for 128, or in task=eval for the autoencoder's context_size.
        prepend_bos: whether each row begins with the model's BOS. Null for the model's own convention, or in task=eval
            for the autoencoder's; the token ids of a data set that is already tokenised are then used unchanged.
        skip_positions: positions at the start of each row that are left out of training and evaluation. Most language
            models make an attention sink of the first position, and its activations are ten times as long as others
            and all alike: they would make up most of the variance.
        exclude_special_tokens: whether BOS, separators and other special tokens are left out of training and
            evaluation; they stay in the rows that the model reads.
        exclude_tokens: further token ids to leave out in the same way.
        prefix: text at the start of every row, after a BOS; its positions are left out of training and evaluation.

    Raises:
        ValueError: a path too many or too few, more than one column, a mask or roles without their column, a share
            outside (0, 1), a context below 2 or with no position left.
    """

    format: DatasetFormat
    path: str | None = None
    config: str | None = None
    split: str = "train"
    data_dir: str | None = None
    revision: str | None = None
    text_column: str | None = None
    tokens_column: str | None = None
    chat_column: str | None = None
    mask_column: str | None = None
    chat_roles: list[str] | None = None
    label_column: str | None = None
    max_invalid_rows: int = field(default=10, metadata=COUNT_OR_NONE)
    held_out: float = field(default=0.1, metadata=INNER_SHARE)
    context: int | None = field(default=None, metadata=between(least=2, most=2**24, meaning="a number of tokens"))
    prepend_bos: bool | None = None
    skip_positions: int = field(default=1, metadata=between(least=0, most=2**24))
    exclude_special_tokens: bool = True
    exclude_tokens: list[int] = field(
        default_factory=list, metadata=between(least=0, most=2**31 - 1, meaning="a token id")
    )
    prefix: str | None = None

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
        columns = {
            name: value
            for name in ("text_column", "tokens_column", "chat_column")
            if (value := getattr(self, name)) is not None
        }
        if len(columns) > 1:
            named = " and ".join(f"dataset.{name} is {value!r}" for name, value in columns.items())
            raise ValueError(f"{named}; documents come from one column: name it and set the other to null")
        if self.format in (DatasetFormat.python_source, DatasetFormat.text) and self.column != "text":
            raise ValueError(
                f"dataset.{next(iter(columns))} is {self.column!r}, but files of text have the one column 'text'; set "
                "it to null, or choose dataset=json_files or dataset=parquet_files"
            )
        if self.mask_column is not None and self.tokens_column is None:
            raise ValueError(
                f"dataset.mask_column is {self.mask_column!r}, which is for token ids; name their column by "
                "dataset.tokens_column, or set it to null"
            )
        if self.chat_roles is not None and self.chat_column is None:
            raise ValueError(
                f"dataset.chat_roles is {self.chat_roles}, which is for chats; name their column by "
                "dataset.chat_column, or set it to null"
            )
        if self.chat_roles is not None and not self.chat_roles:
            raise ValueError("dataset.chat_roles is empty; name the roles that count, or set it to null for all")
        if self.skip_positions >= self.tokens_per_row:
            raise ValueError(
                f"dataset.skip_positions is {self.skip_positions}; it must leave some of the {self.tokens_per_row} "
                "positions of dataset.context"
            )

    @property
    def column(self) -> str:
        """The column of the documents."""
        return self.tokens_column or self.chat_column or self.text_column or "text"

    @property
    def name(self) -> str:
        """The data set's name in runs and tables: the last part of its path, and the part of it that is read."""
        if self.path is None:
            return self.format.name
        parts = [self.config, self.data_dir] if self.format is DatasetFormat.hub else []
        return "-".join([last_part(self.path), *(word(part) for part in parts if part)])

    @property
    def hub_name(self) -> str | None:
        """The data set's name on the hub; None if it is elsewhere."""
        if self.path is None or self.format is not DatasetFormat.hub:
            return None
        return self.path if is_hub_name(self.path) and not Path(self.path).exists() else None

    @property
    def tokens_per_row(self) -> int:
        """`context`, or the default if it is null."""
        return _TOKENS_PER_ROW if self.context is None else self.context


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document.

    Attributes:
        content: text; token ids if the data set is already tokenised; messages if it is of chats.
        label: the document's label, if it has one.
        where: the place that it was read from, for messages.
    """

    content: str | list[int] | list[Message]
    label: Any = None
    where: str = field(default="", compare=False)

    @property
    def size(self) -> int:
        """The number of characters or token ids in the document."""
        if self.content and isinstance(self.content[0], dict):
            return sum(len(message.get("content", "")) for message in cast(list[Message], self.content))
        return len(self.content)


class Rows(Protocol):
    """Protocol for rows that are read one by one, from a position that can be saved."""

    def __next__(self) -> Row: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Unusable(Exception):  # noqa: N818 - a state of a row, which is counted
    """A row has no usable document; the message says why."""


class Documents(Iterator[Document]):
    """One part of a data set, document by document; its position can be saved and restored exactly.

    Attributes:
        name: the data set's name in messages.
        tokenised: whether documents are token ids.
        chats: whether documents are lists of messages.
        labelled: whether documents have labels.
        masked: whether a mask marked the padding of the last document.
        skipped: rows of this pass without a usable document.

    Raises:
        ValueError: while iterating: a column is missing or of another type, too many rows have no usable document, or
            a whole pass found no document.
    """

    def __init__(self, rows: Rows, settings: DatasetSettings, part: Part):
        self._rows, self._settings, self._part = rows, settings, part
        self._start = rows.state_dict()
        self.name = settings.name
        self.tokenised = settings.tokens_column is not None
        self.chats = settings.chat_column is not None
        self.labelled = settings.label_column is not None
        self.masked = False
        self.rewind()

    def rewind(self) -> None:
        """Go back to the first document."""
        self._rows.load_state_dict(self._start)
        self._seen = self._kept = self.skipped = 0

    def __next__(self) -> Document:
        while (row := self._next_row()) is not None:
            self._seen += 1
            try:
                document = self._document(row)
            except _Unusable as reason:
                self._skip(f"{row.where}: {reason}")
                continue
            if _part_of(document.content, self._settings.held_out) is self._part:
                self._kept += 1
                return document
        if self._kept == 0:
            raise ValueError(self._emptiness())
        raise StopIteration

    def reject(self, document: Document, reason: str) -> None:
        """Leave out the last document returned, because it cannot be tokenised.

        Raises:
            ValueError: there were too many such rows.
        """
        self._kept -= 1
        self._skip(f"{document.where}: column {self._settings.column!r} {reason}")

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last document."""
        return {"rows": self._rows.state_dict(), "seen": self._seen, "kept": self._kept, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position of the same data set."""
        self._rows.load_state_dict(state["rows"])
        self._seen, self._kept, self.skipped = state["seen"], state["kept"], state["skipped"]

    def _next_row(self) -> Row | None:
        try:
            return next(self._rows, None)
        except ValueError as error:
            raise ValueError(f"data set {self.name}: {error}") from error

    def _document(self, row: Row) -> Document:
        settings = self._settings
        for wanted in (settings.column, settings.label_column, settings.mask_column):
            if wanted is not None and wanted not in row.values:
                self._refuse_first(f"{missing_column(settings, wanted, row.columns)} ({row.where})")
                raise _Unusable(f"there is no {wanted!r}, it has {', '.join(row.columns) or 'nothing'}")
        value = row.values[settings.column]
        if value is None:
            raise _Unusable(f"column {settings.column!r} is null")
        try:
            content = self._content(value, row)
        except ValueError as error:
            reason = f"column {settings.column!r} {error}"
            self._refuse_first(f"data set {self.name}, {row.where}: {reason}")
            raise _Unusable(reason) from error
        label = row.values[settings.label_column] if settings.label_column else None
        return Document(content=content, label=label, where=row.where)

    def _content(self, value: Any, row: Row) -> str | list[int] | list[Message]:
        """Return a document's content; raise ValueError if the column has another type."""
        if self.chats:
            return messages_of(value)
        if not self.tokenised:
            if not isinstance(value, str):
                raise ValueError(f"holds {type(value).__name__}, not text")
            if "\0" in value:
                raise ValueError("holds zero bytes, so it is no text")
            return value
        ids = _whole_numbers(value, "token ids")
        mask_column = self._settings.mask_column or _USUAL_MASK
        mask = row.values.get(mask_column)
        self.masked = mask is not None
        if mask is None:
            if self._settings.mask_column is not None:
                raise ValueError(f"has no mask: {mask_column!r} is null")
            return ids
        if not isinstance(mask, list) or len(mask) != len(ids) or any(each not in (0, 1) for each in mask):
            raise ValueError(
                f"has a mask in {mask_column!r} that is not a list of {len(ids)} zeros and ones, one for each token id"
            )
        return [token_id for token_id, is_text in zip(ids, mask, strict=True) if is_text]

    def _refuse_first(self, reason: str) -> None:
        """Raise ValueError if no row was usable so far: the settings are wrong then, not the row."""
        if self._seen - self.skipped == 1:
            raise ValueError(reason)

    def _skip(self, reason: str) -> None:
        self.skipped += 1
        limit = self._settings.max_invalid_rows
        if self.skipped > limit:
            raise ValueError(
                f"data set {self.name}: {reason}. That makes {self.skipped} rows of {self._seen} without a usable "
                f"document, and dataset.max_invalid_rows is {limit}: repair them, or raise the limit to leave them out"
            )
        # One warning: both parts read every row.
        if self.skipped == 1 and self._part is Part.train:
            log.warning(
                "data set %s: %s. The row is left out, as up to dataset.max_invalid_rows=%d are",
                self.name,
                reason,
                limit,
            )

    def _emptiness(self) -> str:
        if self._seen == 0:
            return f"data set {self.name} is empty: no document in {_whereabouts(self._settings)}"
        return (
            f"data set {self.name}: none of its {self._seen - self.skipped} documents is in the part "
            f"{self._part.value} (dataset.held_out is {self._settings.held_out}); use more documents or another share"
        )


class _HubRows(Iterator[Row]):
    """Rows of a data set that `datasets` reads."""

    def __init__(self, dataset: "IterableDataset", whereabouts: str):
        self._dataset, self._whereabouts = dataset, whereabouts
        self._rows, self._count = iter(dataset), 0

    def __next__(self) -> Row:
        try:
            values = next(self._rows)
        except StopIteration:
            raise
        except Exception as error:
            # Each reader and each kind of compression raises exceptions of its own.
            raise ValueError(
                f"{self._whereabouts} cannot be read on after row {self._count}: {_reason(error)}"
            ) from error
        self._count += 1
        return Row(f"row {self._count}", values, list(values))

    def state_dict(self) -> dict[str, Any]:
        return {"dataset": self._dataset.state_dict(), "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._dataset.load_state_dict(state["dataset"])
        self._rows, self._count = iter(self._dataset), state["count"]


def open_documents(settings: DatasetSettings, part: Part) -> Documents:
    """Open one part of a data set.

    Files are read in one fixed random order, so that runs with different seeds share their activations; data sets in
    the hub's layout are read in their own order. A document's content alone decides which part it is in: copies of a
    document are never in both.

    Raises:
        ValueError: no such folder, a glob without matches, files that cannot be read, an unreachable hub, no access to
            a gated data set, no such configuration or split.
    """
    if settings.format is DatasetFormat.hub:
        return Documents(_HubRows(_open_hub(settings), _whereabouts(settings)), settings, part)
    files = dataset_files(settings)
    Random(0).shuffle(files)
    named = [each for each in (settings.column, settings.label_column, settings.mask_column) if each is not None]
    if settings.format is DatasetFormat.parquet:
        # A file's columns are known without reading its rows.
        for file in files:
            columns = _columns_of(settings, file)
            for wanted in named:
                if wanted not in columns:
                    raise ValueError(f"{missing_column(settings, wanted, columns)} ({file})")
    reads = settings.format.value if settings.format in (DatasetFormat.json, DatasetFormat.parquet) else "text"
    return Documents(FileRows(files, reads, [*named, _USUAL_MASK]), settings, part)


def open_rows(settings: DatasetSettings, columns: Sequence[str]) -> Iterator[Row]:
    """Yield all rows of a data set with the values of several columns, of any type.

    Raises:
        ValueError: it cannot be opened, files are damaged, or a row lacks one of the columns.
    """
    if settings.format is DatasetFormat.hub:
        rows: Iterator[Row] = _HubRows(_open_hub(settings), _whereabouts(settings))
    else:
        rows = FileRows(dataset_files(settings), settings.format.value, columns)
    for row in rows:
        for wanted in columns:
            if wanted not in row.values:
                raise ValueError(
                    f"data set {settings.name} has no column {wanted!r} ({row.where}); it has "
                    f"{', '.join(row.columns) or 'none'}"
                )
        yield row


def _columns_of(settings: DatasetSettings, file: str) -> list[str]:
    try:
        return parquet_columns(file)
    except ValueError as error:
        raise ValueError(f"data set {settings.name}: {error}") from error


def missing_column(settings: DatasetSettings, wanted: str, columns: Sequence[str]) -> str:
    """Return a message that a column is missing, with the existing columns and the setting that names it."""
    key = next((key for key in ("label_column", "mask_column") if getattr(settings, key) == wanted), None)
    keys = _CONTENT_KEYS if key is None or wanted == settings.column else f"dataset.{key}"
    return (
        f"data set {settings.name} has no column {wanted!r}; it has {', '.join(columns) or 'none'}: set {keys} to one "
        "of these"
    )


def dataset_identity(settings: DatasetSettings) -> dict[str, str]:
    """Return what identifies these documents: a hub commit, or a digest of the files' names, sizes and times.

    Raises:
        ValueError: no such folder, a glob without matches, an unreachable hub, no access to a gated data set.
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
        # datasets resolves a relative folder as we do, but does not expand a tilde.
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


def _load(settings: DatasetSettings, path: str, **arguments: Any) -> "IterableDataset":
    import datasets
    from datasets import config

    # Otherwise datasets reports to the hub even that files of this machine are opened.
    setattr(config, "HF_UPDATE_DOWNLOAD_COUNTS", False)  # noqa: B010
    # The error reports once what is wrong with a file.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        dataset = datasets.load_dataset(path, streaming=True, **arguments)
    except Exception as error:
        # The first line names the cause: no such configuration or split, no data files, a script, a damaged file.
        raise ValueError(
            f"data set {settings.name} could not be opened from {_whereabouts(settings)}: {first_line(error)}"
        ) from error
    finally:
        if not bars:
            datasets.enable_progress_bars()
    assert isinstance(dataset, datasets.IterableDataset)
    return dataset


def dataset_files(settings: DatasetSettings) -> list[str]:
    """Return the files of a data set, sorted, so that every machine permutes them alike.

    Raises:
        ValueError: no file exists or matches, a link leads nowhere, permissions forbid reading a file or folder.
    """
    if settings.format is DatasetFormat.python_source:
        return list(standard_library())
    assert settings.path is not None
    endings = {DatasetFormat.json: (".json", ".jsonl", ".json.gz", ".jsonl.gz"), DatasetFormat.parquet: (".parquet",)}
    return files_at(settings.path, endings.get(settings.format, ()), settings.format.value)


def _whereabouts(settings: DatasetSettings) -> str:
    if settings.format is DatasetFormat.python_source:
        return sysconfig.get_path("stdlib")
    details = [f"{key}={value}" for key in ("config", "data_dir") if (value := getattr(settings, key)) is not None]
    if settings.format is DatasetFormat.hub:
        details.append(f"split={settings.split}")
    return f"{settings.path} ({', '.join(details)})" if details else str(settings.path)


def _reason(error: Exception) -> str:
    """Return the message of an error of `datasets` in one line; the first line of some names no columns."""
    if type(error).__name__ == "CastError":
        return "its files do not have the same columns, or columns of the same types: " + " ".join(str(error).split())
    return first_line(error)


def _whole_numbers(value: Any, what: str) -> list[int]:
    if not isinstance(value, list):
        raise ValueError(f"holds {type(value).__name__}, not a list of {what}")
    wrong = next((each for each in value if type(each) is not int), 0)
    if isinstance(wrong, list):
        raise ValueError(f"holds a list of lists, not one list of {what} a row; write each inner list as its own row")
    if wrong is None:
        raise ValueError(f"has null among its {what}")
    if type(wrong) is not int:
        raise ValueError(f"holds {type(wrong).__name__} ({wrong!r}) among its {what}, which are whole numbers")
    return value


def _part_of(content: str | list[int] | list[Message], held_out: float) -> Part:
    if isinstance(content, str):
        data = content.encode("utf-8", "surrogatepass")
    elif content and isinstance(content[0], dict):
        data = json.dumps(content, sort_keys=True, default=str).encode()
    else:
        data = ",".join(map(str, content)).encode()
    position = int.from_bytes(blake2b(data, digest_size=8).digest(), "big") / 2**64
    return Part.held_out if position < held_out else Part.train

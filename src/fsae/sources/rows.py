"""Rows of files on this machine: text, JSON and Parquet, one by one, from a position that can be saved."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsae.errors import first_line

# Rows of a Parquet file that are in memory at a time.
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        where: it stands, for messages: "/data/a.jsonl, line 201".
        values: of the columns that are wanted, or of all.
        columns: all that there are.
    """

    where: str
    values: dict[str, Any]
    columns: Sequence[str]


class FileRows(Iterator[Row]):
    """The rows of files, file by file; its position can be saved and restored exactly.

    Files need not have the same columns: those that are not wanted are not looked at.

    Args:
        files: in the order in which they are read.
        reads: how a file is read: "text" (one row with the column `text`), "json" or "parquet".
        columns: those that are wanted.

    Raises:
        ValueError: while iterating: a file is damaged or of another kind.
    """

    def __init__(self, files: Sequence[str], reads: str, columns: Sequence[str]):
        self._files, self._reads, self._columns = files, reads, columns
        self.load_state_dict({"file": 0, "row": 0})

    def __next__(self) -> Row:
        while self._file < len(self._files):
            file = self._files[self._file]
            if self._rows is None:
                self._rows = _READERS[self._reads](file, self._columns, self._row)
            with _naming(file, self._reads):
                row = next(self._rows, None)
            if row is not None:
                self._row += 1
                return row
            self._file, self._row, self._rows = self._file + 1, 0, None
        raise StopIteration

    def state_dict(self) -> dict[str, Any]:
        """The position after the last row returned."""
        return {"file": self._file, "row": self._row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position in the same files."""
        self._file: int = state["file"]
        self._row: int = state["row"]
        self._rows: Iterator[Row] | None = None


def parquet_columns(file: str) -> list[str]:
    """The columns of a Parquet file.

    Raises:
        ValueError: it is damaged, or no Parquet file.
    """
    with _naming(file, "parquet"), closing(_parquet(file)) as parquet:
        return parquet.schema_arrow.names


@contextmanager
def _naming(file: str, reads: str) -> Iterator[None]:
    """Turns whatever a damaged file makes a reader raise into a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        # Each reader and each kind of compression has exceptions of its own.
        raise ValueError(
            f"{file} cannot be read as {reads}: {first_line(error)}; mend the file, or name others by dataset.path"
        ) from error


def _text_rows(file: str, columns: Sequence[str], begin: int) -> Iterator[Row]:
    if begin == 0:
        with _opened(file, encoding="utf-8", errors="replace") as stream:
            yield Row(file, {"text": stream.read()}, ["text"])


def _json_rows(file: str, columns: Sequence[str], begin: int) -> Iterator[Row]:
    with _opened(file, encoding="utf-8-sig", errors="strict") as stream:
        for count, (where, value) in enumerate(_json_values(file, stream, begin)):
            if count < begin:
                continue
            if isinstance(value, str) and where.startswith("item"):
                value = {"text": value}
            if not isinstance(value, dict):
                raise ValueError(
                    f"{where} is {_kind(value)}, not an object with columns; expected are JSON Lines (one object a "
                    "line) or one list of objects"
                )
            yield Row(f"{file}, {where}", value, list(value))


def _json_values(file: str, stream: io.TextIOBase, begin: int) -> Iterator[tuple[str, Any]]:
    """Each line's value; or each item of a file that is one list, or the file's one object."""
    first, count = True, 0
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        count += 1
        if not first:
            # A line before the position is counted and not read.
            yield f"line {number}", None if count <= begin else _parsed(line, number)
            continue
        first = False
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            # One value over many lines, or damage.
            value = _parsed(line + stream.read(), number)
        if isinstance(value, list):
            yield from ((f"item {place}", item) for place, item in enumerate(value, start=1))
        else:
            yield f"line {number}", value


def _parsed(text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {line + error.lineno - 1} is no JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise ValueError(f"line {line} is nested too deeply") from error


def _parquet_rows(file: str, columns: Sequence[str], begin: int) -> Iterator[Row]:
    with closing(_parquet(file)) as parquet:
        there = parquet.schema_arrow.names
        wanted = [name for name in there if name in columns]
        number = 0
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            if number + size <= begin:
                number += size
                continue
            batches = parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=wanted, use_threads=False)
            for batch in batches:
                for values in batch.to_pylist():
                    number += 1
                    if number > begin:
                        yield Row(f"{file}, row {number}", values, there)


def _parquet(file: str) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(file)


def _opened(file: str, encoding: str, errors: str) -> io.TextIOBase:
    """A text file, which may be compressed: its ending says how."""
    import fsspec

    opened = fsspec.open(f"file://{Path(file)}", "rb", compression="infer")
    return io.TextIOWrapper(opened.open(), encoding=encoding, errors=errors)  # pyright: ignore


_READERS: dict[str, Callable[[str, Sequence[str], int], Iterator[Row]]] = {
    "text": _text_rows,
    "json": _json_rows,
    "parquet": _parquet_rows,
}


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(type(value), "a number")

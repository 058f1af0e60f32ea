"""Rows of local files: text, JSON, Parquet and CSV, read one by one, from a position that can be saved."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsae.errors import first_line

# Rows of a Parquet file that are in memory at the same time.
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        where: the row's place, for messages: "/data/a.jsonl, line 201".
        values: the values of the wanted columns, or of all columns.
        columns: the names of all columns.
    """

    where: str
    values: dict[str, Any]
    columns: Sequence[str]


class FileRows(Iterator[Row]):
    """Rows of files, file by file; the position can be saved and restored exactly.

    Files need not have the same columns: unwanted columns are not read.

    Args:
        files: the files, in the order in which they are read.
        reads: how a file is read: "text" (one row with the column `text`), "json" or "parquet".
        columns: the wanted columns.

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
        """Return the position after the last row."""
        return {"file": self._file, "row": self._row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position in the same files."""
        self._file: int = state["file"]
        self._row: int = state["row"]
        self._rows: Iterator[Row] | None = None


def parquet_columns(file: str) -> list[str]:
    """Return the columns of a Parquet file.

    Raises:
        ValueError: the file is damaged, or no Parquet file.
    """
    with _naming(file, "parquet"), closing(_parquet(file)) as parquet:
        return parquet.schema_arrow.names


def csv_rows(file: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file, which may be compressed; its ending determines how.

    Raises:
        ValueError: the file is damaged, or no CSV file.
    """
    import pyarrow

    with _naming(str(file), "csv"), pyarrow.input_stream(str(file), compression="detect") as stream:
        text = io.TextIOWrapper(io.BytesIO(stream.read()), encoding="utf-8", newline="")
        yield from csv.DictReader(text)


@contextmanager
def _naming(file: str, reads: str) -> Iterator[None]:
    """Turn any error that a damaged file causes in a reader into a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        # Each reader and each kind of compression raises exceptions of its own.
        raise ValueError(
            f"{file} cannot be read as {reads}: {first_line(error)}; repair the file, or name others by dataset.path"
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
                    f"{where} is {_kind(value)}, not an object with columns; expected are JSON Lines (one object "
                    "per line) or one list of objects"
                )
            yield Row(f"{file}, {where}", value, list(value))


def _json_values(file: str, stream: io.TextIOBase, begin: int) -> Iterator[tuple[str, Any]]:
    """Yield the value of each line, each item of a file that is one list, or the one object of a file."""
    first, count = True, 0
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        count += 1
        if not first:
            # A line before the position is counted, not parsed.
            yield f"line {number}", None if count <= begin else _parsed(line, number)
            continue
        first = False
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            # One value spread over many lines, or a damaged file.
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
    """Open a text file, which may be compressed; its ending determines how."""
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

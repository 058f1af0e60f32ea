from pathlib import Path

import pyarrow
import pytest

from fsae.sources.rows import csv_rows


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_csv_file_may_be_compressed(tmp_path: Path, ending: str):
    path = tmp_path / f"a.csv{ending}"
    kind = {"": None, ".gz": "gzip", ".zst": "zstd"}[ending]
    with pyarrow.output_stream(str(path), compression=kind) as stream:
        stream.write(b'text,label\n"two\nlines, quoted",1\nb,0\n')
    assert [list(row.values()) for row in csv_rows(path)] == [["two\nlines, quoted", "1"], ["b", "0"]]


def test_a_damaged_csv_file_is_named(tmp_path: Path):
    (tmp_path / "a.csv.zst").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"a\.csv\.zst cannot be read as csv"):
        list(csv_rows(tmp_path / "a.csv.zst"))

import base64
import gzip
import json

import numpy as np
import pytest

from fsae.analysis.packed_arrays import in_few_bytes, pack, pack_lists, rounded, smallest


def unpack(packed: str) -> dict[str, np.ndarray | list[str]]:
    """Return what `pack` packed; a page's script does the same."""
    content = gzip.decompress(base64.b64decode(packed))
    place = 4 + int.from_bytes(content[:4], "little")
    arrays: dict[str, np.ndarray | list[str]] = {}
    for name, kind, length in json.loads(content[4:place]):
        part, place = content[place : place + length], place + length
        if kind == "texts":
            arrays[name] = json.loads(part)
        else:
            size = np.dtype(kind).itemsize
            planes = np.frombuffer(part, np.uint8).reshape(size, length // size)
            arrays[name] = planes.T.copy().view(kind).ravel()
    assert place == len(content)
    return arrays


def from_few_bytes(found: np.ndarray) -> list[int]:
    """Return the numbers that `in_few_bytes` wrote; a page's script does the same."""
    numbers, rest = [], iter(found.tolist())
    for first in rest:
        if first < 160:
            numbers.append(first)
        elif first < 240:
            numbers.append(160 + (first - 160) * 256 + next(rest))
        else:
            numbers.append(160 + 80 * 256 + (first - 240) * 65536 + next(rest) * 256 + next(rest))
    return numbers


def test_arrays_and_texts_survive():
    arrays = {
        "numbers": np.array([0.5, -1e-30, np.nan, np.inf], np.float32),
        "whole": np.array([0, 1, 2**32 - 1], np.uint32),
        "none": np.empty(0, np.float64),
    }
    texts = ["</script>", "日本\n", '"', ""]
    found = unpack(pack({**arrays, "texts": texts}))
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
    assert found["texts"] == texts


def test_equal_arrays_give_equal_text():
    assert pack({"a": np.arange(5, dtype=np.int32)}) == pack({"a": np.arange(5, dtype=np.int32)})


def test_lists_of_rows_are_joined_and_null_is_empty():
    found = pack_lists("a", [[1, 2], None, np.array([3])], np.uint32)
    assert found["a"].tolist() == [1, 2, 3]
    assert found["a.lengths"].tolist() == [2, 0, 1]


@pytest.mark.parametrize(("largest", "kind"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (65536, "uint32")])
def test_whole_numbers_get_the_smallest_type(largest: int, kind: str):
    assert str(smallest(np.array([0, largest])).dtype) == kind


def test_rounding_has_its_bound_and_keeps_what_is_no_number():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    found = rounded(values, 9)
    assert np.abs(found / values - 1).max() <= 2**-10
    assert not (found.view(np.uint32) & 0x3FFF).any()
    np.testing.assert_array_equal(
        rounded(np.array([np.nan, np.inf, -np.inf, 0, 1]), 9), [np.nan, np.inf, -np.inf, 0, 1]
    )


def test_numbers_survive_in_few_bytes():
    values = [0, 159, 160, 161, 20_639, 20_640, 20_641, 85_000, 1_069_215]
    found = in_few_bytes(np.array(values))
    assert from_few_bytes(found) == values
    assert len(found) == 2 * 1 + 3 * 2 + 4 * 3
    assert len(in_few_bytes(np.empty(0, np.int64))) == 0

"""Packed arrays: named arrays as one text that a script file holds and a browser unpacks without a library."""

import base64
import gzip
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

# The types that a page's script knows; `unpack` in latent_view/data.js has the same.
_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_TEXTS = "texts"
_COMPRESSION = 6
# Numbers below the first take one byte; those below the sum of the first two, two bytes; the rest, three.
_SHORT, _MIDDLE, _LONG = 160, 80 * 2**8, 16 * 2**16


def pack(arrays: Mapping[str, np.ndarray | Sequence[str]]) -> str:
    """Return the arrays and lists of texts as gzip in base64.

    Within: the length of a header (4 bytes, little-endian), the header (JSON: name, type and bytes of each), and the
    contents.
    A number's bytes are stored apart: first the lowest byte of all numbers, then the next one. High bytes repeat, so
    they then take almost no space. Equal arrays give equal text.
    """
    header: list[tuple[str, str, int]] = []
    contents: list[bytes] = []
    for name, values in arrays.items():
        if isinstance(values, np.ndarray):
            kind = str(values.dtype)
            assert kind in _TYPES, f"{name}: {kind} is none of a page's types"
            size = values.dtype.itemsize
            little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
            content = little.view(np.uint8).reshape(-1, size).T.tobytes()
        else:
            kind, content = _TEXTS, json.dumps(list(values), ensure_ascii=True).encode()
        header.append((name, kind, len(content)))
        contents.append(content)
    head = json.dumps(header).encode()
    packed = gzip.compress(struct.pack("<I", len(head)) + head + b"".join(contents), _COMPRESSION, mtime=0)
    return base64.b64encode(packed).decode()


def pack_lists(name: str, lists: Sequence[Any], type: type[np.number]) -> dict[str, np.ndarray]:
    """Return the arrays of a list per row: `NAME`, all of them joined, and `NAME.lengths`; null is an empty list."""
    rows = [() if each is None else each for each in lists]
    lengths = np.array([len(each) for each in rows], np.uint16)
    joined = np.concatenate(rows).astype(type) if lengths.sum() else np.empty(0, type)
    return {name: joined, f"{name}.lengths": lengths}


def smallest(values: np.ndarray) -> np.ndarray:
    """Return whole numbers, none of them negative, in the smallest type that holds all of them."""
    largest = int(values.max(initial=0))
    assert int(values.min(initial=0)) >= 0
    return values.astype(np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.uint32)


def rounded(values: Float[np.ndarray, "..."], bits: int) -> Float[np.ndarray, "..."]:
    """Return float32 numbers rounded to `bits` bits after the first; the rest of their mantissa is zero, which packs
    well.

    The relative error is at most 2^-(bits + 1).
    """
    drop = 23 - bits
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    nearest = (raw + np.uint32(1 << (drop - 1))) & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
    # Rounding must not turn a NaN's mantissa into a number.
    return np.where(np.isfinite(values), nearest.view(np.float32), np.asarray(values, np.float32))


def in_few_bytes(values: Int[np.ndarray, " numbers"]) -> UInt8[np.ndarray, " bytes"]:
    """Return whole numbers as bytes, of which small ones take one and others two or three.

    A first byte below 160 is the number. One below 240 begins a number of two bytes, and others one of three.
    """
    assert values.min(initial=0) >= 0
    assert values.max(initial=0) < _SHORT + _MIDDLE + _LONG
    middle, long = values >= _SHORT, values >= _SHORT + _MIDDLE
    rest = values - np.where(long, _SHORT + _MIDDLE, np.where(middle, _SHORT, 0))
    first = np.where(long, 240 + (rest >> 16), np.where(middle, _SHORT + (rest >> 8), rest))
    found = np.stack([first, np.where(long, rest >> 8, rest) & 255, rest & 255], axis=1)
    return found[np.stack([np.ones(len(values), bool), middle, long], axis=1)].astype(np.uint8)

"""Files of tensors from outside, safetensors, npz and torch's own, which are read without running code in them."""

import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

_AGAIN = "save or download it again"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        ValueError: the file is truncated or damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); {_AGAIN}") from error


def names_in(path: Path) -> set[str]:
    """Return the names of the tensors in a safetensors file, without reading these.

    Raises:
        ValueError: the file is truncated or damaged.
    """
    with _opened(path) as tensors:
        return set(tensors.keys())


def shape_in(path: Path, name: str, dimensions: int) -> list[int]:
    """Return the shape of a tensor in a safetensors file, without reading it.

    Raises:
        ValueError: the file is truncated or damaged, or has no such tensor with this number of dimensions.
    """
    with _opened(path) as tensors:
        shape = tensors.get_slice(name).get_shape() if name in tensors.keys() else None  # noqa: SIM118
    if shape is None or len(shape) != dimensions:
        raise ValueError(f"{path} has no tensor {name} of {dimensions} dimensions; {_AGAIN}")
    return shape


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); {_AGAIN}") from error


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return the arrays of an npz file as tensors.

    Raises:
        ValueError: the file is truncated or damaged, or has an array of Python objects, which are never read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:
        raise ValueError(
            f"{path} is truncated or damaged, or holds more than numbers ({type(error).__name__}: {error}); {_AGAIN}"
        ) from None


def read_state_dict(path: Path) -> dict[str, Any]:
    """Return the object in a file of `torch.save`: tensors, numbers and texts by name.

    Raises:
        ValueError: the file is truncated or damaged, or would run code when it is opened.
    """
    try:
        # Such a file is several gigabytes, and its settings are read before its tensors.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        # Torch's own message recommends to open such a file without this restriction.
        raise ValueError(
            f"{path} is truncated or damaged, or holds more than tensors, numbers and texts ({type(error).__name__}); "
            f"it was not opened further, because such a file can run code. Have it saved as safetensors, or {_AGAIN}"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not tensors by name; {_AGAIN}")
    return found


def renamed(
    tensors: Mapping[str, Any],
    names: Mapping[str, str],
    path: Path,
    transposed: Collection[str] = (),
    ignored: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return the tensors of a file under other names.

    Args:
        tensors: by the file's names.
        names: the file's name of each tensor, by its new name.
        path: the file, for messages.
        transposed: the new names of those that the file holds transposed.
        ignored: names of the file that a dictionary has no use for.

    Raises:
        ValueError: a tensor is missing or superfluous, or a matrix is none.
    """
    for name in names.values():
        if not isinstance(tensors.get(name), Tensor):
            raise ValueError(f"{path} has no tensor {name}; it holds {', '.join(sorted(tensors)) or 'nothing'}")
    if superfluous := sorted(tensors.keys() - set(names.values()) - set(ignored)):
        raise ValueError(f"{path} holds {', '.join(superfluous)}, which this kind of dictionary has no use for")
    found = {new: tensors[name] for new, name in names.items()}
    for name in transposed:
        if found[name].dim() != 2:
            raise ValueError(f"{path}: {names[name]} is {tuple(found[name].shape)}; it must be a matrix")
        found[name] = found[name].T
    return found


def check_shapes(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str],
    path: Path,
    said: str,
) -> None:
    """Check the shapes of renamed tensors.

    Args:
        tensors: by their new names; those that `shapes` does not name may have any shape.
        shapes: by the new names.
        names: the file's name of each tensor, by its new name.
        path: the file of the tensors, for messages.
        said: the name of the file that says which shapes they should have, for messages.

    Raises:
        ValueError: a tensor has another shape.
    """
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{path}: {names[name]} is {tuple(tensors[name].shape)}, by {said} it should be {shape}")


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors writes them: contiguous, without shared memory, on the CPU and in float32."""
    return {
        name: tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write contiguous tensors that share no memory into a safetensors file.

    Raises:
        OSError: no space is left, or the file cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}; free space there") from error

"""Kept findings: what an evaluation finds without a dictionary, on disk for all dictionaries at a site."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from hashlib import blake2b, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fsae.files import digest_of, replacing, share_as_folder
from fsae.sources.source import HeldOutText

log = logging.getLogger(__name__)

# The folder of kept findings, among the activation stores.
FOLDER = "evaluations"
# Packages of which another version may give other numbers.
_PACKAGES = ("torch", "transformers", "numpy", "scipy", "scikit-learn")

Tensors = dict[str, Tensor]
# Returns the tensors of a computation that depends on some content, computed or kept.
Keeper = Callable[[Mapping[str, Any], Callable[[], Mapping[str, Tensor]]], Tensors]


def keeper(text: HeldOutText) -> Keeper:
    """Return the keeper of what a language model says of texts, and of what is learned from its activations at a site.

    Tensors are kept next to the activation stores, under the identity of the model, the site, the content, and the
    versions of this code and of the packages that compute. So other dictionaries at the site, and the same command
    after a kill, do not compute them again.
    """

    def found(content: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]]) -> Tensors:
        return kept(text, {"norm_limits": text.input_limits, "versions": versions()} | dict(content), compute)

    return found


def computed(content: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]]) -> Tensors:
    """Return what is computed: a keeper that keeps nothing."""
    return dict(compute())


def kept(text: HeldOutText, content: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]]) -> Tensors:
    """Return the tensors of a computation from disk if they are kept there; otherwise compute them and keep them.

    Args:
        text: the language model, the sites, and the folder.
        content: what the tensors depend on besides models and sites, as JSON.
        compute: the computation.
    """
    room = text.kept_in
    if room is None:
        return dict(compute())
    site = " + ".join(map(str, text.sites.input))
    whole = text.origin | {"site": site, "bos": text.prepends_bos} | dict(content)
    return kept_in(room.folder / FOLDER, whole, compute, room.taken)


def kept_in(
    folder: Path,
    content: Mapping[str, Any],
    compute: Callable[[], Mapping[str, Tensor]],
    taken: Callable[[int], AbstractContextManager[None]] = lambda needed: nullcontext(),
) -> Tensors:
    """Return the tensors of a computation from a file in this folder, or compute them and write the file.

    Args:
        folder: of the files.
        content: everything that the tensors depend on, as JSON.
        compute: the computation.
        taken: makes room for that many bytes while the file is written.
    """
    written = json.dumps(content, sort_keys=True)
    path = folder / f"{digest_of(dict(content))}.safetensors"
    if (found := _read(path, written)) is not None:
        return found
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in compute().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with taken(sum(tensor.nbytes for tensor in found.values())), replacing(path, shared=True) as unfinished:
            save_file(found, unfinished, metadata={"content": written, "names": json.dumps(list(found))})
            share_as_folder(unfinished)
    except (OSError, SafetensorError) as error:
        log.warning("%s of an evaluation are not kept: %s", ", ".join(found), error)
    return found


def digest_of_texts(texts: Iterable[str]) -> str:
    """Return what distinguishes texts from others."""
    digest = blake2b(digest_size=16)
    for each in texts:
        encoded = each.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def digest_of_tensor(tensor: Tensor) -> str:
    """Return what distinguishes a tensor from others, of its values, its shape and its type."""
    array = tensor.detach().cpu().contiguous().numpy()
    digest = blake2b(f"{array.dtype} {array.shape} ".encode(), digest_size=16)
    digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path: Path, written: str) -> Tensors | None:
    """Return what is kept; None if nothing is, or if the file is damaged or of another content."""
    if not path.exists():
        return None
    try:
        # The time shows `fsae.store` when it was last used.
        path.touch()
        with safe_open(path, "pt") as opened:
            described = opened.metadata() or {}
            # Files of an earlier version have no names.
            if described.get("content") != written or "names" not in described:
                return None
            # In their order, so that files that are made of them are the same, too.
            return {name: opened.get_tensor(name) for name in json.loads(described["names"])}
    except (SafetensorError, OSError) as error:
        log.warning("%s cannot be read (%s); it is computed again", path, error)
        return None


@cache
def versions(folder: Path = Path(__file__).parent) -> dict[str, str]:
    """Return the versions of packages, and a digest of the code in a folder; by default that of all evaluations."""
    code = sha256()
    for path in sorted(folder.rglob("*.py")):
        code.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return {"code": code.hexdigest()[:16]} | {name: version(name) for name in _PACKAGES}

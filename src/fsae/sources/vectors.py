"""Vectors that a Python caller has in memory, as a source."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.ranges import INNER_SHARE, between
from fsae.sources.in_memory import InMemorySettings, InMemorySource


@dataclass(frozen=True, kw_only=True)
class VectorsSettings(InMemorySettings):
    """Description, in a run's records, of vectors that a caller hands over.

    Attributes:
        d_in: width of the vectors.
        held_out: share of the vectors, the last ones, that is held out.
    """

    d_in: int = field(metadata=between(least=1, most=2**28, meaning="a number of dimensions"))
    held_out: float = field(default=0.1, metadata=INNER_SHARE)

    def width(self) -> int:
        return self.d_in

    def source(self, device: torch.device) -> InMemorySource:
        raise ValueError("these vectors were in a Python process's memory; call fsae.train with them again")

    def stream(self, vectors: Float[Tensor, "vectors d_in"], device: torch.device) -> InMemorySource:
        """Return a stream of the vectors; the last ones are held out."""
        held_out = round(self.held_out * len(vectors))
        # A variance needs two.
        if held_out < 2 or held_out > len(vectors) - 2:
            raise ValueError(
                f"held_out is {self.held_out}, which is {held_out} of {len(vectors)} vectors; at least two are needed "
                "to evaluate on and two to train on"
            )
        return InMemorySource(vectors[:-held_out], vectors[-held_out:], self.seed, device)


def as_vectors(given: Tensor | Iterable[Tensor], what: str) -> Float[Tensor, "vectors d_in"]:
    """Return one tensor of vectors; the parts of an iterable are joined.

    Args:
        given: (n, d_in), or any number of such parts.
        what: the argument's name, for messages.

    Raises:
        ValueError: no vectors, something else than floating-point tensors of two axes, or parts of several widths.
    """
    parts = [given] if isinstance(given, Tensor) else list(given)
    for part in parts:
        if not isinstance(part, Tensor):
            raise ValueError(
                f"{what}: expected a tensor of shape (n, d_in) or an iterable of such tensors, found "
                f"{type(given).__name__} of {type(part).__name__}; torch.as_tensor makes tensors of arrays"
            )
        if part.dim() != 2 or not part.is_floating_point():
            raise ValueError(
                f"{what}: expected floating-point vectors of shape (n, d_in), found {tuple(part.shape)} of "
                f"{str(part.dtype).removeprefix('torch.')}; flatten(0, -2) joins all axes but the last one"
            )
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        raise ValueError(f"{what}: the parts have the widths {', '.join(map(str, widths))}; they must have one width")
    vectors = parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0, 0)
    if vectors.numel() == 0:
        raise ValueError(f"{what}: expected a tensor of shape (n, d_in), found no vectors")
    return vectors.detach()


def digest(vectors: Tensor) -> str:
    """Return a digest of the vectors' bytes and their type."""
    found = hashlib.sha256(f"{vectors.dtype} {tuple(vectors.shape)}".encode())
    for part in vectors.split(65_536):
        found.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]

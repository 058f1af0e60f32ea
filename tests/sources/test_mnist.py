"""MNIST's files and scikit-learn's digits as vectors."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.data.mnist import write_idx
from fsae.sources.in_memory import InMemorySource
from fsae.sources.mnist import MNISTSettings

CPU = torch.device("cpu")


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 784), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_idx(tmp_path / "train-images-idx3-ubyte", images(40, 0))
    write_idx(tmp_path / "plain", images(10, 1))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    return tmp_path


def held_out(source: InMemorySource) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in source.held_out(1000, 7)])


def test_mnist_files_are_read_and_scaled_by_the_training_part(folder: Path):
    source = MNISTSettings(path=str(folder)).source(CPU)
    train = source.first_vectors()
    assert (source.d_in, len(train)) == (784, 40)
    assert (train.mean().item(), train.std().item()) == pytest.approx((0, 1), abs=1e-5)
    pixels = images(40, 0).astype(np.float64)
    wanted = (images(10, 1) - pixels.mean()) / pixels.std(ddof=1)
    np.testing.assert_allclose(held_out(source).numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_share_is_drawn_by_the_seed_and_scales_by_itself(folder: Path):
    quarter, other, half = (
        MNISTSettings(path=str(folder), share=share, seed=seed).source(CPU)
        for share, seed in ((0.25, 0), (0.25, 1), (0.5, 0))
    )
    assert not torch.equal(quarter.first_vectors(), other.first_vectors())
    assert len(quarter.first_vectors()) == 10
    assert quarter.first_vectors().mean().item() == pytest.approx(0, abs=1e-5)
    assert not torch.equal(held_out(quarter), held_out(MNISTSettings(path=str(folder)).source(CPU)))
    # The same images, to another scale.
    images, of_half = quarter.first_vectors(), half.first_vectors()[:10]
    torch.testing.assert_close(images, (of_half - of_half.mean()) / of_half.std())


def test_a_warning_says_that_scikit_learns_digits_are_not_mnist(caplog: pytest.LogCaptureFixture):
    source = MNISTSettings().source(CPU)
    # 1,797, of which a tenth is held out.
    assert (source.d_in, len(source.first_vectors()), len(held_out(source))) == (64, 1618, 179)
    assert "scikit-learn's digits, not MNIST" in caplog.text


def test_missing_and_damaged_files_are_named(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no train-images-idx3-ubyte or train-images-idx3-ubyte.gz"):
        MNISTSettings(path=str(tmp_path / "nowhere")).source(CPU)
    zipped = folder / "t10k-images-idx3-ubyte.gz"
    whole = zipped.read_bytes()
    # Cut short; another pixel than the checksum's; and after gzip's ten bytes a block of a type that is none.
    for damaged in (whole[:-20], whole[:4000] + bytes([whole[4000] ^ 1]) + whole[4001:], whole[:10] + b"\xff" * 5):
        zipped.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz is damaged"):
            MNISTSettings(path=str(folder)).source(CPU)
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte is not a whole idx file of images"):
        MNISTSettings(path=str(folder)).source(CPU)


def test_shares_are_checked(folder: Path):
    with pytest.raises(ValueError, match=r"source.share is 1.5; it must be a share"):
        MNISTSettings(share=1.5)
    with pytest.raises(ValueError, match=r"source.share=0.01 of 40 images is no image; raise it"):
        MNISTSettings(path=str(folder), share=0.01).source(CPU)
    four = MNISTSettings(path=str(folder), share=0.1).source(CPU)
    with pytest.raises(ValueError, match=r"trainer.batch_size is 5, more than the 4 training samples"):
        next(four.batches(5))

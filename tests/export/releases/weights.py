"""Small weights for folders of releases, and the comparison with a forward that is written by hand."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fsae.export.dictionary_files import load_autoencoder
from tests.architectures import relative_error

D_IN, D_SAE, K = 32, 64, 4

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def drawn(*shape: int, seed: int = 0, by: float = 0.5) -> Tensor:
    return by * torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def weights(seed: int = 0) -> dict[str, Tensor]:
    """W_enc (d_in, d_sae), W_dec (d_sae, d_in) with rows of several norms, biases, and thresholds."""
    return {
        "W_enc": drawn(D_IN, D_SAE, seed=seed),
        "W_dec": drawn(D_SAE, D_IN, seed=seed),
        "b_enc": drawn(D_SAE, seed=seed, by=0.2),
        "b_dec": drawn(D_IN, seed=seed + 7),
        "threshold": drawn(D_SAE, seed=seed + 9).abs(),
    }


def vectors() -> Tensor:
    return drawn(60, D_IN, seed=3, by=2.0)


def largest(pre: Tensor, k: int = K) -> Tensor:
    """relu(pre) at the k largest entries of each row."""
    return torch.where(pre >= pre.topk(k, dim=1).values[:, -1:], pre.relu(), 0)


def check(path: Path, forward: Forward) -> None:
    """Compare codes and reconstruction with the release's own forward."""
    x = vectors()
    codes, reconstruction = forward(x)
    with torch.no_grad():
        record = load_autoencoder(path)(x)
    assert (codes != 0).any()
    assert (codes == 0).any()
    assert relative_error(record.codes.dense(), codes) < 1e-5
    assert relative_error(record.reconstruction, reconstruction) < 1e-5

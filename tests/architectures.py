"""One small autoencoder of every architecture, with weights at which every path through it carries gradient."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.abs_topk import AbsTopKSettings
from fsae.autoencoders.autoencoder import Autoencoder, SparseAutoencoder
from fsae.autoencoders.batch_topk import BatchTopKSettings
from fsae.autoencoders.fitted import FittedSettings
from fsae.autoencoders.gated import GatedSettings
from fsae.autoencoders.jumprelu import JumpReLUSettings
from fsae.autoencoders.local_pca import KMeansSettings, LocalPCA, LocalPCASettings
from fsae.autoencoders.pca import PCA, PCASettings
from fsae.autoencoders.record import Encoding
from fsae.autoencoders.settings import SparseAutoencoderSettings
from fsae.autoencoders.standard import Standard, StandardSettings
from fsae.autoencoders.topk import TopKSettings
from fsae.sparse.codes import Codes

# A wide kernel, so that a few dozen entries suffice for some to fall into it.
ARCHITECTURES: dict[str, tuple[type[SparseAutoencoderSettings], dict[str, Any]]] = {
    "standard": (StandardSettings, {}),
    "gated": (GatedSettings, {}),
    "jumprelu": (JumpReLUSettings, {"init_threshold": 0.3, "bandwidth": 0.4}),
    "topk": (TopKSettings, {"k": 3}),
    "batch_topk": (BatchTopKSettings, {"k": 3}),
    "abs_topk": (AbsTopKSettings, {"k": 3}),
}


class Squared(Standard):
    """An architecture that nothing knows but this file: a subclass of another, with codes of its own."""

    def encode(self, x: Tensor, sparse: bool = False) -> Encoding:
        known = super().encode(x, sparse)
        return Encoding(known.codes.map(torch.square), known.pre_activations)


class SquaredSettings(StandardSettings):
    def build(self, d_in: int, generator: torch.Generator) -> Squared:
        return Squared(d_in, self, generator)


# Those that are fitted without gradients.
FITTED: dict[str, FittedSettings] = {
    "kmeans": KMeansSettings(d_sae=6),
    "local_pca": LocalPCASettings(d_sae=12, rank=2),
    "pca": PCASettings(d_sae=3),
}

each_architecture = pytest.mark.parametrize("arch", list(ARCHITECTURES))


def settings_of(arch: str, **changes: Any) -> SparseAutoencoderSettings:
    """Settings of an architecture, with `changes` to the defaults of these tests."""
    kind, defaults = ARCHITECTURES[arch]
    return kind(**{**defaults, **changes})


def build(
    arch: str, d_in: int = 5, d_sae: int = 13, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any
) -> SparseAutoencoder:
    """An autoencoder whose every parameter was moved away from its special starting value."""
    generator = torch.Generator().manual_seed(seed)
    autoencoder = settings_of(arch, d_sae=d_sae, **changes).build(d_in, generator).to(dtype)
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return autoencoder


def fitted(arch: str, d_in: int = 5, dtype: torch.dtype = torch.float32) -> LocalPCA | PCA:
    """One with centres and means that are drawn and components that are orthonormal."""
    autoencoder = FITTED[arch].build(d_in, torch.Generator()).to(dtype).eval()
    cells, rank = autoencoder.cells, autoencoder.rank
    bases = torch.linalg.qr(samples(cells * d_in, d_in, seed=2).view(cells, d_in, d_in)).Q
    centres, means = (samples(cells, d_in, seed=seed).to(dtype) for seed in (3, 4))
    autoencoder.place(centres, bases[:, :rank].to(dtype), means)
    return autoencoder


def with_weights(arch: str, weights: Mapping[str, Any], **changes: Any) -> SparseAutoencoder:
    """An autoencoder with exactly the given parameters (nested lists), in float64; those not given are zero."""
    d_in, d_sae = torch.tensor(weights["W_enc"]).shape
    autoencoder = settings_of(arch, d_sae=d_sae, **changes).build(d_in, torch.Generator()).double()
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(torch.tensor(weights.get(name, 0.0), dtype=torch.float64))
    return autoencoder


def samples(batch: int, d_in: int = 5, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """(batch, d_in) draws from a standard normal."""
    return torch.randn(batch, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def twin(autoencoder: SparseAutoencoder) -> SparseAutoencoder:
    """An independent copy; a forward pass in training may change an autoencoder's state."""
    return copy.deepcopy(autoencoder)


def gradients(value: Tensor, autoencoder: Autoencoder) -> dict[str, Tensor]:
    """Gradient of a scalar in every parameter by name, zeros where it does not depend on it."""
    names, parameters = zip(*autoencoder.named_parameters(), strict=True)
    if not value.requires_grad:
        return {name: torch.zeros_like(parameter) for name, parameter in zip(names, parameters, strict=True)}
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True, retain_graph=True)
    return dict(zip(names, found, strict=True))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest wanted entry (over 1e-3 where all are smaller, so that 0 compares with 0)."""
    return float((got - wanted).detach().abs().max() / wanted.detach().abs().max().clamp_min(1e-3))


def entries(codes: Codes) -> Tensor:
    """(batch, d_sae) bool: the entries that the codes hold, zero or not."""
    return Codes(torch.ones_like(codes.values), codes.pattern).dense() != 0


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """One thread: on tensors this small several only wait for each other, for minutes where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

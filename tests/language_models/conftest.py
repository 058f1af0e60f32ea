"""Models that several tests read, opened once per session."""

import functools

import pytest
import torch

from fsae.language_models.settings import DType, ModelSettings, Package
from fsae.language_models.transformer_lens import TransformerLensModel, open_language_model


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors on a shared machine: threads would wait for one another most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def opened(package: Package) -> TransformerLensModel:
    """A packaged model, in float32."""
    return open_language_model(ModelSettings(package=package, dtype=DType.float32))


@pytest.fixture(scope="session")
def tiny() -> TransformerLensModel:
    return opened(Package.tiny)

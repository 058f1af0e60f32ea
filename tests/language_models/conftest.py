"""Models that several test files open."""

import pytest

from fsae.language_models.settings import ModelSettings, Package
from fsae.language_models.transformer_lens_model import TransformerLensModel, open_language_model


def opened(package: Package, **settings) -> TransformerLensModel:
    return open_language_model(ModelSettings(name=package.name, package=package, **settings))


@pytest.fixture(scope="session")
def tiny() -> TransformerLensModel:
    return opened(Package.tiny, batch_size=2)

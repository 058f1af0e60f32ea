"""A model's settings name exactly one origin, and the model's name follows from it."""

import pytest

from fsae.language_models.settings import ModelSettings, Package


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "model.path is not set; add model.path=FOLDER_OR_HUB_NAME, or set model.package to one of .* tiny"),
        ({"path": ""}, "model.path is not set"),
        ({"path": "gpt2", "package": Package.tiny}, r"set exactly one \(found 'gpt2'"),
        ({"package": Package.tiny, "revision": "main"}, "a packaged model has none"),
        ({"package": Package.tiny, "weights_seed": 1}, "model.weights_seed is 1, but published weights have no seed"),
        ({"package": Package.tiny, "batch_size": 0}, "model.batch_size is 0"),
    ],
)
def test_model_settings_refuse_contradictions(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"package": Package.tiny}, "tiny"),
        ({"path": "google/gemma-2-2b"}, "gemma-2-2b"),
        ({"path": "/some/where/my model"}, "my_model"),
    ],
)
def test_a_model_is_named_after_its_package_or_path(settings, name):
    assert ModelSettings(**settings).name == name
    with pytest.raises(TypeError):
        ModelSettings(**{**settings, "name": "gpt2"})

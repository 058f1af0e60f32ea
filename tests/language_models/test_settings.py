"""A model's settings name exactly one place."""

import pytest

from fsae.language_models.settings import ModelSettings, Package


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"set exactly one \(both are null\)"),
        ({"path": "gpt2", "package": Package.tiny}, r"set exactly one \(found 'gpt2'"),
        ({"package": Package.tiny, "revision": "main"}, "a packaged model has none"),
        ({"package": Package.tiny, "batch_size": 0}, "model.batch_size is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelSettings(name="it", **settings)

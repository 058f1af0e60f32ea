"""The environment of a push to a hub on loopback."""

from collections.abc import Iterator

import pytest

from tests.language_models.fake_hub import WritableHub, writable_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WritableHub]:
    """A hub that takes uploads with the token of this environment."""
    from huggingface_hub import constants

    # Xet's storage is a service of its own, which has no stand-in; the hub's library then sends large files by LFS.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    # A token that somebody on this machine has logged in with.
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path_factory.mktemp("home") / "token"))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    with writable_hub() as serving:
        monkeypatch.setenv("HF_ENDPOINT", serving.address)
        monkeypatch.setenv("HF_TOKEN", serving.token)
        yield serving

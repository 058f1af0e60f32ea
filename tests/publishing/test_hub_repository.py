"""Pushes with huggingface_hub itself, to a hub on loopback."""

import socket
from pathlib import Path

import pytest

from fsae.language_models import hub as hub_module
from fsae.publishing.hub_repository import push
from tests.language_models.fake_hub import WritableHub

FILES: dict[str, Path | bytes] = {
    "README.md": b"# A card\n",
    "sae/cfg.json": b"{}",
    "sae/results.json": b"{}",
    "sae/sae_weights.safetensors": b"\x00\x01 weights",
}


def test_a_push_makes_the_repository_and_commits_all_files_at_once(hub: WritableHub, tmp_path: Path):
    (tmp_path / "plot").write_bytes(b"\x89PNG")
    assert push("me/sae", {**FILES, "sae/plot.png": tmp_path / "plot"}, "sae", "Publish it") == f"{hub.address}/me/sae"
    files = hub.repos["me/sae"]
    assert files == {**FILES, "sae/plot.png": b"\x89PNG", ".gitattributes": files[".gitattributes"]}
    assert hub.messages == ["Publish it"]
    assert hub.private == set()
    # Large files take the way of LFS, and the others are in the commit.
    assert set(hub.large.values()) == {b"\x00\x01 weights", b"\x89PNG"}


def test_a_new_repository_may_be_private(hub: WritableHub):
    push("me/sae", FILES, "sae", "m", private=True)
    assert hub.private == {"me/sae"}


def test_a_second_push_replaces_the_first(hub: WritableHub):
    push("me/sae", {**FILES, "sae/latents/old.js": b"old", "sae/notes": b"kept"}, "sae", "first")
    push("me/sae", {**FILES, "README.md": b"# New\n", "sae/latents/new.js": b"new"}, "sae", "second")
    files = hub.repos["me/sae"]
    assert files["README.md"] == b"# New\n"
    assert set(files) == {*FILES, ".gitattributes", "sae/notes", "sae/latents/new.js"}
    assert hub.messages == ["first", "second"]


@pytest.mark.parametrize("name", ["README.md", "thesis.pdf", "other/sae_weights.safetensors"])
def test_a_repository_with_other_files_is_refused(name: str, hub: WritableHub):
    hub.repos["me/sae"] = {".gitattributes": b"", name: b"of somebody"}
    with pytest.raises(ValueError, match=rf"me/sae exists and holds other files \({name}\); choose another name, or"):
        push("me/sae", FILES, "sae", "m")
    assert hub.repos["me/sae"] == {".gitattributes": b"", name: b"of somebody"}
    push("me/sae", {"sae/README.md": b"", "sae/cfg.json": b"{}"}, "sae", "m", add=True)
    assert hub.repos["me/sae"] == {
        ".gitattributes": b"",
        name: b"of somebody",
        "sae/README.md": b"",
        "sae/cfg.json": b"{}",
    }


@pytest.mark.parametrize("add", [False, True])
def test_a_folder_of_another_origin_is_left_alone(add: bool, hub: WritableHub):
    there = {"README.md": b"of somebody", "sae/cfg.json": b"of somebody"}
    hub.repos["me/sae"] = dict(there)
    with pytest.raises(ValueError, match=r"has a folder sae that no run was published to \(sae/cfg.json\); name"):
        push("me/sae", FILES, "sae", "m", add=add)
    assert hub.repos["me/sae"] == there


def test_other_files_that_came_later_are_refused_too(hub: WritableHub):
    push("me/sae", FILES, "sae", "m")
    hub.repos["me/sae"]["thesis.pdf"] = b"long"
    with pytest.raises(ValueError, match=r"other files \(thesis.pdf\)"):
        push("me/sae", FILES, "sae", "m")


@pytest.mark.parametrize("repo", ["sae", "me/sae/two", "../sae", "me/s ae", ""])
def test_an_impossible_name_is_refused_before_anything_is_asked(repo: str):
    with pytest.raises(ValueError, match="a repository's name is owner/name"):
        push(repo, FILES, "sae", "m")


def test_a_name_that_the_hub_forbids_is_refused(hub: WritableHub):
    with pytest.raises(ValueError, match=r"--repo: Repo id|--repo: Cannot have"):
        push("me/sae--two", FILES, "sae", "m")
    assert hub.repos == {}


def test_a_missing_token_is_explained(hub: WritableHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=r"there is no token for .* set HF_TOKEN, or run `hf auth login`"):
        push("me/sae", FILES, "sae", "m")


def test_a_wrong_token_is_explained_and_not_shown(hub: WritableHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_token")
    with pytest.raises(ValueError, match="does not accept the token; make another one") as refused:
        push("me/sae", FILES, "sae", "m")
    assert "hf_wrong_token" not in str(refused.value)


@pytest.mark.parametrize("exists", [False, True])
def test_a_token_without_permission_is_explained(exists: bool, hub: WritableHub):
    if exists:
        hub.repos["somebody/sae"] = {".gitattributes": b""}
    with pytest.raises(ValueError, match="the token may not write to somebody/sae; check the owner's name"):
        push("somebody/sae", FILES, "sae", "m")
    assert hub.messages == []


def test_a_hub_that_fails_or_is_away_is_a_connection_error(hub: WritableHub, monkeypatch: pytest.MonkeyPatch):
    hub.failing = True
    with pytest.raises(ConnectionError, match=r"fails \(Server error '503.*try again later"):
        push("me/sae", FILES, "sae", "m")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(ConnectionError, match=r"cannot be reached \(ConnectError: .*check the network"):
            push("me/sae", FILES, "sae", "m")
        # It accepts connections from here on, and never answers.
        listening.listen()
        monkeypatch.setattr(hub_module, "QUESTION_SECONDS", 0.2)
        with pytest.raises(ConnectionError, match=r"cannot be reached \(TimeoutError: no answer within 0 s"):
            push("me/sae", FILES, "sae", "m")


def test_the_offline_flag_is_named(hub: WritableHub, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set, so nothing can be pushed; unset it"):
        push("me/sae", FILES, "sae", "m")

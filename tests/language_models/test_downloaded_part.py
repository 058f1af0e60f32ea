"""A dictionary's folder of a hub repository is downloaded, and nothing else of it."""

from pathlib import Path

import pytest
import torch

import fsae
from fsae.language_models.hub import downloaded_part
from tests.export.releases.test_gemma_scope import forward, write
from tests.export.releases.weights import vectors
from tests.publishing.hub import hub as hub

REPO, PART = "me/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82"


@pytest.fixture
def repository(hub, tmp_path: Path) -> str:
    params = (write(tmp_path) / "params.npz").read_bytes()
    hub.repos[REPO] = {
        f"{PART}/params.npz": params,
        f"{PART}/run.py": b"raise SystemExit",
        "layer_13/width_16k/average_l0_83/params.npz": params,
        "config.json": b"{}",
        "README.md": b"...",
    }
    return REPO


def test_a_dictionary_of_the_hub_is_loaded_by_its_folder(repository):
    dictionary = fsae.load(repository, PART)
    codes, reconstruction = forward(vectors())
    assert torch.allclose(dictionary.encode(vectors()), codes, atol=1e-5)
    assert torch.allclose(dictionary(vectors()), reconstruction, atol=1e-5)
    assert dictionary.provenance.model_name == "google/gemma-2-2b"
    assert dictionary.provenance.hook_name == "blocks.12.hook_resid_post"


def test_only_settings_and_tensors_of_the_part_are_downloaded(repository):
    folder = downloaded_part(repository, PART, caller="fsae.load")
    snapshot = folder.parents[2]
    found = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert found == {f"{PART}/params.npz", "config.json"}


def test_the_cache_serves_without_the_hub(repository, hub):
    first = downloaded_part(repository, PART, caller="fsae.load")
    hub.failing = True
    assert downloaded_part(repository, PART, caller="fsae.load") == first
    with pytest.raises(ValueError, match=r"fsae.load: me/other is not in the local cache and .* cannot be asked"):
        downloaded_part("me/other", PART, caller="fsae.load")


def test_what_the_hub_lacks_is_refused(repository):
    with pytest.raises(ValueError, match=r"fsae.load: me/gemma-scope-2b-pt-res has no layer_99; .*lists its folders"):
        fsae.load(repository, "layer_99")
    with pytest.raises(ValueError, match="has no model 'me/nothing'; check the spelling"):
        fsae.load("me/nothing", PART)
    with pytest.raises(ValueError, match="no folder or file within a repository"):
        fsae.load(repository, "../other")


def test_a_folder_takes_precedence_over_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "me" / "mine", PART)
    assert fsae.load("me/mine", PART).folder == folder


def test_a_missing_folder_names_the_way_to_the_hub():
    with pytest.raises(ValueError, match=r"found no folder; a dictionary on the hub needs its folder there as well"):
        fsae.load("google/gemma-scope-2b-pt-res")

"""The files of a run that a repository gets."""

import re
import shutil
from pathlib import Path

import pytest

import fsae
from fsae.publishing.publication import publication_of

HOOK = "blocks.1.hook_resid_mid"


def test_a_run_becomes_saelens_folder_a_card_pictures_and_numbers(runs: dict[str, Path]):
    publication = publication_of(runs["text"], "me/sae")
    assert set(publication.files) == {
        "README.md", f"{HOOK}/cfg.json", f"{HOOK}/sae_weights.safetensors", f"{HOOK}/sparsity.safetensors",
        f"{HOOK}/training.png", f"{HOOK}/firing.png", f"{HOOK}/results.json",
    }  # fmt: skip
    sizes = dict(publication.sizes())
    assert sizes["README.md"] == len(publication.text.encode())
    assert sizes[f"{HOOK}/cfg.json"] == (runs["text"] / "sae" / "cfg.json").stat().st_size


def test_pages_are_pushed_if_they_are_wanted(runs: dict[str, Path], tmp_path: Path):
    publication = publication_of(runs["text"], "me/sae", pages=True)
    pages = {name.removeprefix(f"{HOOK}/latents/") for name in publication.files if "/latents/" in name}
    assert "index.html" in pages
    assert any(re.fullmatch(r"pages-\w+/first-shard-0000\.js", name) for name in pages)
    # The store itself is larger, and no page reads it.
    assert not any(name.endswith((".parquet", ".npy")) for name in pages)
    assert f"/me/sae/tree/main/{HOOK}/latents)" in publication.text
    assert f'hf download me/sae --include "{HOOK}/latents/*"' in publication.text
    shutil.copytree(runs["text"], tmp_path / "run", ignore=shutil.ignore_patterns("latents"))
    with pytest.raises(ValueError, match=r"has no pages; .* eval=\[latents\]"):
        publication_of(tmp_path / "run", "me/sae", pages=True)


def test_a_card_next_to_others_is_that_of_the_folder(runs: dict[str, Path]):
    publication = publication_of(runs["text"], "me/sae", folder="layers/1", as_part=True)
    assert publication.card == "layers/1/README.md"
    assert all(name.startswith("layers/1/") for name in publication.files)
    assert "![Training curves](training.png)" in publication.text


def test_a_population_is_pushed_as_a_whole_or_one_member(runs: dict[str, Path]):
    whole = publication_of(runs["population"], "me/sae")
    assert {f"sae/{member}/cfg.json" for member in (0, 1)} < set(whole.files)
    assert "2 sparse autoencoders (`kmeans`, 8 latents) of the source `sparse_sources`" in whole.text
    assert 'fsae.load(f"{folder}/sae", member=0)' in whole.text
    assert "in the folders `sae/0` to `sae/1`" in whole.text
    # SAELens has no k-means.
    assert "SAE.from_pretrained" not in whole.text
    assert "SAELens has no architecture with these codes" in whole.text
    one = publication_of(runs["population"], "me/sae", member=1)
    assert one.files["sae/cfg.json"] == runs["population"] / "sae" / "1" / "cfg.json"
    assert "member=" not in one.text


def test_members_have_their_own_pages(runs: dict[str, Path]):
    whole = publication_of(runs["population"], "me/sae", pages=True)
    assert {f"sae/latents/{member}/index.html" for member in (0, 1)} < set(whole.files)
    assert "Then open `sae/latents/0/index.html`." in whole.text
    one = publication_of(runs["population"], "me/sae", pages=True, member=1)
    assert one.files["sae/latents/index.html"] == runs["population"] / "latents" / "1" / "index.html"


@pytest.mark.parametrize("folder", ["", "..", "a//b", "/a", "a/../b", "a*", "a\nb"])
def test_an_impossible_folder_is_refused(folder: str, runs: dict[str, Path]):
    if folder == "":
        assert publication_of(runs["text"], "me/sae", folder=folder).folder == HOOK
        return
    with pytest.raises(ValueError, match=r"--folder is .*; name a folder in the repository"):
        publication_of(runs["text"], "me/sae", folder=folder)


def test_what_cannot_be_published_is_explained(runs: dict[str, Path], tmp_path: Path):
    with pytest.raises(ValueError, match="a repository's name is owner/name"):
        publication_of(runs["text"], "sae")
    with pytest.raises(ValueError, match="found no folder"):
        publication_of(tmp_path / "nowhere", "me/sae")
    fsae.save(fsae.load(runs["text"]), tmp_path / "alone")
    with pytest.raises(ValueError, match="not the folder of a run that trained"):
        publication_of(tmp_path / "alone", "me/sae")
    run = tmp_path / "failed"
    shutil.copytree(runs["text"], run, ignore=shutil.ignore_patterns("sae"))
    with pytest.raises(ValueError, match=r"expected a dictionary .* found a run in the state 'finished'"):
        publication_of(run, "me/sae")

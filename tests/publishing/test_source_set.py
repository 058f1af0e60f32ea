import pytest

from fsae.language_models.sites import Site
from fsae.publishing.source_set import SourceSet, set_name

SITE = Site.parse("mlp_out.7")


def named(name: str) -> SourceSet:
    return SourceSet(model="gpt2-small", name=name, site=SITE)


@pytest.mark.parametrize("name", ["res-jb", "a", "7", "res-16k-v2"])
def test_neuronpedias_names_are_taken(name: str):
    assert named(name).source == f"7-{name}"


@pytest.mark.parametrize("name", ["", "Res", "res_jb", "res--jb", "res-", "-res", "7b", "neurons", "res jb", "a\n"])
def test_other_names_are_refused(name: str):
    with pytest.raises(ValueError, match=r"Neuronpedia takes lower-case letters.*--set NAME"):
        named(name)


def test_a_long_description_is_refused():
    with pytest.raises(ValueError, match="has 129 characters; Neuronpedia takes 128"):
        SourceSet(model="m", name="a", site=SITE, description="x" * 129)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tiny-resid_mid.1-gated-bb75e334", "tiny-resid-mid-1-gated-bb75e334"),
        ("3 Runs__of me!", "runs-of-me"),
        ("é", ""),
    ],
)
def test_a_name_is_made_of_a_runs_name(text: str, name: str):
    assert set_name(text) == name
    if name:
        named(name)


def test_the_creator_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEFAULT_CREATOR_ID", "mine")
    assert named("a").creator_id == "mine"
    monkeypatch.delenv("DEFAULT_CREATOR_ID")
    assert named("a").creator_id.startswith("c")

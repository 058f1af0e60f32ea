from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fsae.autoencoders.layout import Layout
from fsae.evaluation.downstream.text_activations import Positions, Reading, TextActivations, joined, text_activations
from fsae.language_models.sites import Site, SiteName
from fsae.sources.layout import Sites
from tests.evaluation.downstream.texts import BOS, D_IN, SITE, CharacterModel, Text

OTHER = Site(name=SiteName.resid_post, layer=4)

TEXTS = ["abc", "a longer text", "zz", "abc"]


def read(text: Text, texts: list[str] = TEXTS, **reading: Any) -> TextActivations:
    return text_activations(cast(Any, text), texts, Reading(**reading), "reading texts")


def alone(text: Text, words: str) -> torch.Tensor:
    """The activations of a text that is read alone, without its BOS."""
    tokens = torch.tensor([[BOS, *words.encode("latin-1")]])
    return text.model.activations(tokens, [text.site])[text.site][0, 1:]


def test_every_token_is_read_as_if_its_text_were_alone():
    text = Text()
    found = read(text)
    assert found.starts.tolist() == [0, 3, 16, 18, 21]
    assert found.places.tolist() == [*range(3), *range(13), *range(2), *range(3)]
    assert bytes(found.ids.tolist()) == "".join(TEXTS).encode("latin-1")
    torch.testing.assert_close(found.vectors, torch.cat([alone(text, each) for each in TEXTS]))


def test_the_last_token_only():
    text = Text()
    found = read(text, positions=Positions.last)
    assert len(found) == len(found.vectors) == 4
    assert found.places.tolist() == [2, 12, 1, 2]
    torch.testing.assert_close(found.vectors, torch.stack([alone(text, each)[-1] for each in TEXTS]))


@pytest.mark.parametrize(("from_end", "kept"), [(False, "a lo"), (True, "text")])
def test_a_long_text_is_cut(from_end: bool, kept: str):
    found = read(Text(), ["a longer text"], tokens=4, from_end=from_end)
    assert bytes(found.ids.tolist()).decode() == kept


def test_a_text_is_cut_to_what_the_model_takes():
    text = Text()
    found = read(text, ["x" * 100], tokens=1000)
    assert len(found.ids) == text.model.context_limit - 1


def test_kept_activations_need_no_model(tmp_path: Path):
    first, second = Text(tmp_path), Text(tmp_path)
    found, again = read(first), read(second)
    assert first.model.tokens_read > 0
    assert second.model.tokens_read == 0
    assert torch.equal(found.vectors, again.vectors)
    assert torch.equal(found.starts, again.starts)


@pytest.mark.parametrize("change", ["texts", "model", "tokens", "positions", "bos"])
def test_other_texts_models_and_readings_are_kept_apart(tmp_path: Path, change: str):
    read(Text(tmp_path))
    other, reading = Text(tmp_path), {}
    texts = [*TEXTS[:3], "abd"] if change == "texts" else TEXTS
    if change == "model":
        other.origin = {"model": "other", "dtype": "float32"}
    elif change == "bos":
        other.prepends_bos = False
    elif change == "tokens":
        reading = {"tokens": 5}
    elif change == "positions":
        reading = {"positions": Positions.last}
    read(other, texts, **reading)
    assert other.model.tokens_read > 0


def test_a_damaged_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    found = read(Text(tmp_path))
    (file,) = (tmp_path / "evaluations").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(read(Text(tmp_path)).vectors, found.vectors)
    assert "it is computed again" in caplog.text
    again = Text(tmp_path)
    read(again)
    assert again.model.tokens_read == 0


def test_a_folder_without_room_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "evaluations").write_text("in the way")
    assert read(Text(tmp_path)).vectors.shape == (21, D_IN)
    assert "not kept" in caplog.text


def test_massive_activations_are_left_out():
    everything = read(Text())
    norms = everything.vectors.norm(dim=1)
    limit = float(norms.sort().values[-4])
    found = read(Text(norm_limit=limit))
    assert torch.equal(found.vectors, everything.vectors[norms <= limit])
    assert 0 < len(found.vectors) < 21
    assert torch.equal(found.texts, everything.texts[norms <= limit])


class Twice(CharacterModel):
    """Vectors at one site are twice those at the other."""

    def activations(self, tokens: torch.Tensor, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
        vectors = super().activations(tokens, [SITE])[SITE]
        return {site: vectors if site == SITE else 2 * vectors for site in sites}


class OfTwoSites(Text):
    limits: list[float] | None = None

    @property
    def sites(self) -> Sites:
        return Sites((SITE, OTHER), (SITE, OTHER))

    @property
    def input_layout(self) -> Layout:
        return Layout(((str(SITE), D_IN), (str(OTHER), D_IN)))

    @property
    def input_limits(self) -> list[float] | None:
        return self.limits


def test_sites_are_read_side_by_side_and_a_token_is_massive_if_it_is_so_at_one(tmp_path: Path):
    plain = read(Text(tmp_path))
    both = OfTwoSites(tmp_path, model=Twice())
    found = read(both)
    torch.testing.assert_close(found.vectors, torch.cat([plain.vectors, 2 * plain.vectors], dim=1))
    norms = plain.vectors.norm(dim=1)
    limit = float(norms.sort().values[-4])
    # Beyond the limit at the second site alone.
    both.limits = [10 * limit, 2 * limit]
    assert torch.equal(read(both).vectors, found.vectors[norms <= limit])


def test_a_text_without_a_token_is_named():
    with pytest.raises(ValueError, match="text 1 of 2 has no token"):
        read(Text(), ["abc", ""])


def test_readings_are_joined():
    text = Text()
    found = joined([read(text, TEXTS[:2]), read(text, TEXTS[2:])])
    expected = read(text)
    for name in ("vectors", "ids", "places", "starts"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))

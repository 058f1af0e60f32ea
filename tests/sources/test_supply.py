"""What there was against what was asked for."""

from fsae.sources.supply import MEANINGS, Supply

PLENTY = Supply(trained=300, distinct=100, wanted=100, held_out=50, held_out_wanted=50, skipped_rows=0)
LITTLE = Supply(trained=600, distinct=30, wanted=300, held_out=12, held_out_wanted=50, skipped_rows=2)


def test_every_number_has_a_meaning():
    assert {name.removeprefix("data/") for name in PLENTY.numbers()} == MEANINGS.keys()


def test_rounds_are_relative_to_distinct_samples():
    numbers = LITTLE.numbers()
    assert numbers["data/text_rounds"] == 300 / 30
    assert numbers["data/training_rounds"] == 600 / 30
    assert PLENTY.numbers()["data/text_rounds"] == 1
    assert PLENTY.numbers()["data/training_rounds"] == 3


def test_numbers_without_a_meaning_are_left_out():
    assert Supply(held_out=3, held_out_wanted=3).numbers() == {
        "data/held_out_samples": 3,
        "data/held_out_samples_wanted": 3,
    }


def test_shortages_are_reported_with_their_numbers():
    assert PLENTY.shortages() == []
    text, held_out, rows = LITTLE.shortages()
    assert text.startswith("too little text: 300 distinct activations are asked for (source.tokens) and the training")
    assert "has 30, so that it is read 10.0 times. Use" in text
    assert "set source.tokens to at most 30" in text
    assert "50 samples are asked for (eval.vectors.samples) and there are 12" in held_out
    assert rows.startswith("2 rows of the data set")

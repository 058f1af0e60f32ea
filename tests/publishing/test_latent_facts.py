"""Facts about latents, against sums by hand."""

from pathlib import Path

import numpy as np
import pytest

from fsae.outputs.latent_store import LatentStore
from fsae.publishing.latent_facts import Group, LatentFacts, batches_of_facts, rounded
from tests.analysis.latent_stores import write_samples_store
from tests.publishing.small_store import ON, W_DEC, write_small_store


def facts_of(store: LatentStore, window: int | None = None) -> list[LatentFacts]:
    return [facts for batch in batches_of_facts(store, W_DEC, window, batch=2) for facts in batch]


def test_every_latent_has_facts_in_its_place(store: LatentStore):
    assert [facts.latent for facts in facts_of(store)] == [0, 1, 2]
    assert [facts.density for facts in facts_of(store)] == [0.3, 0.0, 0.4]
    assert [facts.label for facts in facts_of(store)] == ["' a'", None, "x" * 600]


def test_directions_have_length_one_and_codes_the_length_of_the_row(store: LatentStore):
    first, _, last = facts_of(store)
    assert first.direction == [0, -1, 0, 0]
    assert last.direction == pytest.approx([0.6, 0, 0.8, 0])
    # The row of latent 0 has length 2: code * direction is the same vector as before.
    assert first.examples[0].values == [0, 2.4, 3.0, 0]
    assert first.largest == 3.0
    assert last.examples[0].values == [0, 2.0, 0]


def test_examples_have_their_tokens_and_peaks(store: LatentStore):
    first = facts_of(store)[0]
    # Tokens 1 to 4 of the first context, of which two have an empty text and a null character.
    assert first.examples[0].tokens == [" a", "\ufffd", "\ufffd", "d"]
    assert [example.peak for example in first.examples] == [2, 1, 2]
    assert all(example.values[example.peak] == max(example.values) for example in first.examples)


def test_a_window_is_cut_around_the_peak(store: LatentStore):
    example = facts_of(store, window=1)[0].examples[0]
    assert (example.values, example.peak, example.tokens) == ([2.4, 3.0, 0], 1, ["\ufffd", "\ufffd", "d"])


def test_groups_are_the_top_and_intervals_of_codes(store: LatentStore):
    top, also_top, sampled = (example.group for example in facts_of(store)[0].examples)
    assert top == also_top == Group(-1, 3.0, -1)
    # Bin 2 is [1, 2), the largest code is 1.5, and two of three active tokens are in it.
    assert (sampled.least, sampled.most, sampled.share) == (2.0, 3.0, pytest.approx(2 / 3, rel=1e-4))


def test_the_histogram_spreads_each_bin_evenly_up_to_the_largest_code(store: LatentStore):
    first = facts_of(store)[0]
    bars, heights = np.array(first.histogram_values), np.array(first.histogram_heights)
    assert len(bars) == 50
    assert bars[0] == pytest.approx(3.0 / 100)
    assert heights.sum() == pytest.approx(3, rel=1e-3)
    # In codes times 2: one token between 0.5 and 1, and two between 2 and 3.
    assert heights[(bars > 0.5) & (bars < 1)].sum() == pytest.approx(1, abs=0.15)
    assert heights[bars > 2].sum() == pytest.approx(2, abs=0.15)
    assert heights[(bars > 1.1) & (bars < 1.9)].sum() == 0


def test_correlations_are_those_of_being_on(store: LatentStore):
    first = facts_of(store)[0]
    assert first.correlated == [2]
    assert first.correlated_pearson == pytest.approx([np.corrcoef(ON[0], ON[2])[0, 1]], rel=1e-4)
    cosine = (ON[0] & ON[2]).sum() / np.sqrt(ON[0].sum() * ON[2].sum())
    assert first.correlated_cosine == pytest.approx([cosine], rel=1e-4)


def test_neurons_are_the_largest_entries_with_their_shares(store: LatentStore):
    last = facts_of(store)[2]
    assert last.neurons[:2] == [2, 0]
    assert last.neuron_values == pytest.approx([0.8, 0.6, 0])
    assert last.neuron_shares == pytest.approx([0.8 / 1.4, 0.6 / 1.4, 0], rel=1e-4)


def test_logit_effects_are_those_without_the_final_norm(store: LatentStore):
    first = facts_of(store)[0]
    assert (first.raised_tokens, first.raised_values) == ([" a", "\ufffd"], [0.12346, 0.1])
    assert (first.lowered_tokens, first.lowered_values) == (["é"], [-2.0])


def test_a_dead_latent_has_empty_lists(store: LatentStore):
    dead = facts_of(store)[1]
    assert dead.direction == [0, 0, 0, 0]
    lists = [value for name, value in vars(dead).items() if isinstance(value, list) and name != "direction"]
    assert len(lists) == 15
    assert not any(lists)
    assert dead.largest == 0


@pytest.mark.parametrize("batch", [1, 128])
def test_any_number_of_latents_per_batch_gives_the_same_facts(batch: int, store: LatentStore):
    found = [facts for part in batches_of_facts(store, W_DEC, batch=batch) for facts in part]
    for facts, expected in zip(found, facts_of(store), strict=True):
        examples = [vars(example) for example in facts.examples]
        assert examples == [vars(example) for example in expected.examples]
        assert {**vars(facts), "examples": examples} == {**vars(expected), "examples": examples}


def test_a_store_that_cannot_be_shown_is_refused(tmp_path: Path):
    pictures = write_samples_store(tmp_path / "pictures")
    with pytest.raises(ValueError, match=r"pictures is of samples, and these formats show tokens"):
        next(batches_of_facts(pictures, np.ones((40, 4))))
    with pytest.raises(ValueError, match=r"latent 0 has negative codes"):
        next(batches_of_facts(write_small_store(tmp_path / "signed", largest=-1.5), W_DEC))


def test_numbers_are_rounded_to_five_digits():
    numbers = [0.0, 1.0, 123.456789, -0.000123456789, 3e-38, 123456.789]
    assert rounded(numbers) == [0.0, 1.0, 123.46, -0.00012346, pytest.approx(3e-38, rel=1e-6), 123460.0]

"""The excerpts of SAEBench's test: which contexts they are of, and how they are drawn."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fsae.latents.excerpts import Excerpt, ExcerptSizes, Positives, positives_of
from fsae.latents.selection import SelectionSizes, random_excerpts, selected_positives, selection_of
from fsae.outputs.latent_store import SAMPLED, TOP, LatentStore, Meta, latent_rows, write_latent_store
from tests.latents.tables import hit, hits_of
from tests.latents.word_store import write_word_store

SIZES = SelectionSizes()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return write_word_store(tmp_path_factory.mktemp("store") / "latents")


@pytest.fixture(scope="module")
def used(store: LatentStore) -> Positives:
    return positives_of(store, 1, ExcerptSizes(shown=8, scored=10, width=16))


def contexts(excerpts: list[Excerpt]) -> set[int]:
    return {each.context for each in excerpts}


def test_positives_are_two_of_the_strongest_and_two_samples_that_were_not_shown(store: LatentStore, used: Positives):
    strongest = set(store.hits(1).query("group == 'top' and rank < 12")["context"].tolist())
    for seed in range(20):
        found = selected_positives(store, 1, used, SIZES, seed)
        assert [each.kind for each in found] == [TOP, TOP, SAMPLED, SAMPLED]
        assert len(contexts(found)) == 4
        assert not contexts(found) & contexts(used.shown)
        assert contexts(found[:2]) <= strongest
        assert all(1 in each.tokens for each in found)


def test_the_peak_is_in_the_middle_of_21_tokens_unless_the_row_ends(store: LatentStore, used: Positives):
    found = [each for seed in range(20) for each in selected_positives(store, 1, used, SIZES, seed)]
    inner = [each for each in found if 10 <= each.position < store.meta.context - 10]
    assert inner
    assert {each.position - each.begin for each in inner} == {10}
    assert {len(each.tokens) for each in inner} == {21}


def test_random_excerpts_are_of_other_contexts(store: LatentStore, used: Positives):
    positives = selected_positives(store, 1, used, SIZES, 0)
    found = random_excerpts(store, 1, used, positives, SIZES, 0)
    assert len(found) == len(contexts(found)) == 10
    assert not contexts(found) & (contexts(positives) | contexts(used.shown))
    for each in found:
        assert each.begin >= 1
        assert list(each.tokens) == store.tokens[each.context, each.begin : each.begin + 21].tolist()
    again = random_excerpts(store, 1, used, positives, SIZES, 0)
    assert [each.begin for each in again] == [each.begin for each in found]
    assert contexts(random_excerpts(store, 2, used, positives, SIZES, 0)) != contexts(found)


def test_the_list_is_shuffled_and_knows_its_truth(store: LatentStore, used: Positives):
    positives = selected_positives(store, 1, used, SIZES, 0)
    negatives = random_excerpts(store, 1, used, positives, SIZES, 0)
    question = selection_of(1, positives, negatives, lambda tokens: [store.strings[token] for token in tokens], 0)
    assert len(question.examples) == 14
    truth = [each.positive for each in question.examples]
    assert sum(truth) == 4
    assert truth[:4] != [True] * 4
    assert question.judgements("2, 14") == [int(number in (2, 14)) for number in range(1, 15)]


def test_samples_are_drawn_in_proportion_to_the_square_of_their_code(tmp_path: Path):
    """One sample of 30 with code 1, and two of 10 with codes 2 and 3: shares 30, 5 * 4 and 5 * 9 of 95."""
    values = {10: (1.0, 0), 11: (2.0, 1), 12: (3.0, 1)}
    rows = [hit(0, context, [9.0], rank=1, begin=3) for context in (0, 1)]
    rows += [
        hit(0, context, [value], rank=1 + 2 * number, begin=3, group=SAMPLED, bin=place)
        for number, (context, (value, place)) in enumerate(values.items())
    ]
    meta = Meta(
        kind="text", d_sae=1, architecture="TopK", weights="0" * 16, positions=160, excluded={}, contexts=20,
        context=8, window=4, top=20, per_bin=4, bin_edges=[0.0, 1.5, 4.0], seed=0,
    )  # fmt: skip
    table = pd.DataFrame({"latent": np.array([0], np.int32), "histogram": [np.array([30, 10])]})
    tokens = np.arange(160, dtype=np.uint16).reshape(20, 8)
    strings = {token: f" w{token}" for token in range(160)}
    write_latent_store(tmp_path / "latents", latent_rows(table), [hits_of(rows)], meta, tokens=tokens, strings=strings)
    store, sizes = LatentStore(tmp_path / "latents"), SelectionSizes(weighted=1)
    drawn = Counter(selected_positives(store, 0, Positives([], []), sizes, seed)[-1].context for seed in range(150))
    for context, share in zip(values, (30 / 95, 20 / 95, 45 / 95), strict=True):
        assert drawn[context] / 150 == pytest.approx(share, abs=0.12)
    # There are only two top contexts and three samples.
    assert selected_positives(store, 0, Positives([], []), SelectionSizes(top=3), 0) == []
    assert selected_positives(store, 0, Positives([], []), SelectionSizes(weighted=4), 0) == []

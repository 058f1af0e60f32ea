"""Excerpts: none that was shown is scored, peaks have any place, and negatives are off."""

from pathlib import Path

import numpy as np
import pytest

from fsae.latents.excerpts import NEIGHBOUR, RANDOM, Excerpt, ExcerptSizes, Negatives, positives_of
from fsae.outputs.latent_store import SAMPLED, TOP, LatentStore
from tests.latents.word_store import LATENTS, codes_of, write_word_store

SIZES = ExcerptSizes(shown=12, scored=10, width=16)
ALIVE = range(LATENTS - 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return write_word_store(tmp_path_factory.mktemp("store") / "latents")


def excerpt(codes: list[float], kind: str = TOP, context: int = 0) -> Excerpt:
    return Excerpt(kind, context, 0, 0, tuple(range(len(codes))), np.array(codes, np.float32))


@pytest.mark.parametrize("latent", ALIVE)
def test_shown_are_hits_of_even_rank_and_scored_those_of_odd_rank(store: LatentStore, latent: int):
    found = positives_of(store, latent, SIZES)
    names = ("group", "context", "rank")
    hits = zip(*(store.hits(latent)[name].tolist() for name in names), strict=True)
    ranks = {(group, context): rank for group, context, rank in hits}
    assert {ranks[each.kind, each.context] % 2 for each in found.shown} == {0}
    assert {ranks[each.kind, each.context] % 2 for each in found.scored} == {1}
    assert [each.kind for each in found.shown] == [TOP] * 6 + [SAMPLED] * 6
    assert [each.kind for each in found.scored] == [TOP] * 5 + [SAMPLED] * 5


@pytest.mark.parametrize("latent", ALIVE)
def test_every_context_is_used_once(store: LatentStore, latent: int):
    found = positives_of(store, latent, SIZES)
    contexts = [each.context for each in (*found.shown, *found.scored)]
    assert len(set(contexts)) == len(contexts)


def test_a_context_that_was_shown_is_not_scored(tmp_path: Path):
    """The row of rank 0 among the top contexts is also that of rank 1 among the samples, at another place."""
    from tests.latents.tables import hit, hits_of

    store = write_word_store(tmp_path / "latents")
    values = [0.0] * 30
    top = [hit(0, context, [*values[:9], 5.0, *values], rank=rank) for rank, context in enumerate((7, 8))]
    sampled = [hit(0, context, [*values, 1.0], rank=rank, group=SAMPLED) for rank, context in enumerate((9, 7, 10, 11))]
    store.hits = lambda latent=None: hits_of([*top, *sampled])  # type: ignore[method-assign]
    found = positives_of(store, 0, SIZES)
    assert [each.context for each in found.shown] == [7, 9, 10]
    assert [each.context for each in found.scored] == [8, 11]
    assert found.enough


def test_a_text_that_was_shown_is_not_scored(tmp_path: Path):
    from tests.latents.tables import hit, hits_of

    store = write_word_store(tmp_path / "latents")
    rows = np.array(store.tokens)
    rows[1] = rows[0]
    store.tokens = rows  # type: ignore[misc]
    store.hits = lambda latent=None: hits_of([hit(0, context, [0.0, 1.0], rank=context) for context in range(4)])  # type: ignore[method-assign]
    assert [each.context for each in positives_of(store, 0, SIZES).scored] == [3]
    assert not positives_of(store, 0, SIZES).enough


@pytest.mark.parametrize("latent", ALIVE)
def test_an_excerpt_has_its_codes_and_its_peak_anywhere(store: LatentStore, latent: int):
    found = positives_of(store, latent, SIZES)
    places = set()
    for each in (*found.shown, *found.scored):
        assert each.tokens == tuple(store.tokens[each.context, each.begin : each.begin + len(each.tokens)])
        np.testing.assert_array_equal(each.codes > 0, np.array(each.tokens) == latent)
        place = each.position - each.begin
        assert each.tokens[place] == latent
        assert each.codes[place] == np.nanmax(each.codes)
        assert len(each.tokens) == 16
        places.add(place)
    assert len(places) > 5


def test_an_excerpt_is_as_short_as_its_window(store: LatentStore):
    assert {len(each.tokens) for each in positives_of(store, 0, ExcerptSizes(width=1000)).shown} <= set(range(25, 50))


def test_choices_do_not_change(store: LatentStore):
    first, second = positives_of(store, 2, SIZES), positives_of(store, 2, SIZES)
    assert [(each.context, each.begin) for each in first.scored] == [
        (each.context, each.begin) for each in second.scored
    ]


def test_negatives_are_off_and_hard_and_of_other_contexts(store: LatentStore):
    latents = list(ALIVE)
    positives = [positives_of(store, latent, SIZES) for latent in latents]
    for latent, own, found in zip(
        latents, positives, Negatives(store, SIZES, codes_of).of(latents, positives), strict=True
    ):
        assert [each.kind for each in found] == [NEIGHBOUR] * 5 + [RANDOM] * 5
        assert all(latent not in each.tokens for each in found)
        # Another latent is on in each of them.
        assert all(set(each.tokens) & set(ALIVE) for each in found)
        contexts = [each.context for each in (*found, *own.shown, *own.scored)]
        assert len(set(contexts)) == len(contexts)


def test_negatives_do_not_depend_on_the_other_latents(store: LatentStore):
    def found(*latents: int) -> list[tuple[int, int]]:
        positives = [positives_of(store, latent, SIZES) for latent in latents]
        last = Negatives(store, SIZES, codes_of).of(latents, positives)[-1]
        return [(each.context, each.begin) for each in last]

    assert found(3) == found(0, 1, 3)


def test_a_latent_that_is_always_on_has_no_negatives(store: LatentStore):
    always = Negatives(store, SIZES, lambda pairs: [np.ones(len(each.tokens)) for _, each in pairs])
    assert always.of([1], [positives_of(store, 1, SIZES)]) == [[]]


def test_positions_that_did_not_count_do_not_make_a_latent_on(store: LatentStore):
    """A negative's first token did not count: the code there, of a massive activation, is ignored."""
    candidate = excerpt([np.nan, 0.0, 2.0], NEIGHBOUR)
    negatives = Negatives(store, SIZES, lambda pairs: [np.array([9.0, 0, 0])] * len(pairs))
    negatives._hits_of = lambda latents, kind, random: [candidate]  # type: ignore[method-assign]
    assert negatives.of([0], [positives_of(store, 0, SIZES)]) == [[candidate]]


def test_strong_tokens_have_a_share_of_the_largest_code():
    # 0.3 x 10 = 3.
    assert excerpt([np.nan, 2.9, 3.0, 10.0, 0.0]).strong(0.3).tolist() == [False, False, True, True, False]


def test_wrong_marks_are_as_many_and_on_other_tokens_that_count():
    each = excerpt([np.nan, 10.0, 4.0, 0.0, 1.0, 0.0, 0.0])
    places = set()
    for seed in range(40):
        marks = each.wrong(0.3, np.random.default_rng(seed))
        assert marks is not None
        assert marks.sum() == 2
        places |= set(np.flatnonzero(marks).tolist())
    assert places == {3, 4, 5, 6}


def test_an_excerpt_with_too_few_other_tokens_has_no_wrong_marks():
    assert excerpt([5.0, 5.0, 0.0]).wrong(0.3, np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"shown": 1}, "shown is 1"), ({"width": 1}, "width is 1"), ({"threshold": 0.0}, "threshold is 0")],
)
def test_sizes_out_of_range_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ExcerptSizes(**settings)

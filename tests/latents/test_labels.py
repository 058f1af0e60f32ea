"""Purities, classes and labels: by hand, and on planted latents."""

import numpy as np
import pandas as pd
import pytest

from fsae.latents.labels import (
    DEAD,
    DENSE,
    MEANINGS,
    N_GRAM,
    OTHER,
    OUTPUT_LIKE,
    SINGLE_TOKEN,
    Classes,
    aggregated,
    aggregates,
    classes,
    labels,
    text_columns,
)
from fsae.outputs.latent_store import HIT_COLUMNS, LATENT_COLUMNS, LatentStore, Meta, latent_rows, write_latent_store
from tests.latents.tables import hit, hits_of, hits_where

STRINGS = {0: " of", 1: " the", 2: " return", 3: "\n", 4: "x", 5: "'s"}


def columns_of_one(hits: pd.DataFrame, tokens: list[list[int]], **arguments) -> dict:
    found = text_columns(hits, np.array(tokens, np.int32), 1, **arguments)
    return {name: values[0] for name, values in found.items()}


def test_purities_are_shares_of_the_codes():
    # Peaks: token 1 with codes 4 and -2, token 2 with code 3; after them 5, 5, 7; before them 9 and 8.
    tokens = [[9, 1, 5], [1, 5, 0], [8, 2, 7]]
    hits = hits_of([hit(0, 0, [0, 4, 0]), hit(0, 1, [-2, 0, 0], rank=2), hit(0, 2, [0, 3, 0], rank=1)])
    found = columns_of_one(hits, tokens)
    assert found["token_purity"] == pytest.approx(6 / 9)
    # Two contexts of three: -(2/3 log2 2/3 + 1/3 log2 1/3).
    assert found["token_entropy"] == pytest.approx(0.9183, abs=1e-4)
    assert found["next_token_purity"] == pytest.approx(6 / 9)
    assert found["previous_token_purity"] == pytest.approx(4 / 7)
    assert found["top_tokens"].tolist() == [1, 2]
    assert found["top_token_counts"].tolist() == [2, 1]


def test_equal_counts_are_ordered_by_their_codes():
    hits = hits_of([hit(0, 0, [1]), hit(0, 1, [3], rank=1)])
    found = columns_of_one(hits, [[1], [2]])
    assert found["top_tokens"].tolist() == [2, 1]
    assert found["token_purity"] == pytest.approx(3 / 4)
    assert found["token_entropy"] == pytest.approx(1)
    assert np.isnan(found["next_token_purity"])
    assert np.isnan(found["previous_token_purity"])


def test_only_top_contexts_count_for_purity():
    hits = hits_of([hit(0, 0, [1]), hit(0, 1, [1], group="sample")])
    assert columns_of_one(hits, [[1], [2]])["top_tokens"].tolist() == [1]


def test_the_input_score_is_the_share_of_peaks_among_the_top_logits():
    hits = hits_of([hit(0, context, [1], rank=context) for context in range(4)])
    found = columns_of_one(hits, [[1], [2], [3], [3]], input_tokens=np.array([[3, 7, 2]]))
    assert found["input_score"] == pytest.approx(3 / 4)
    assert "input_score" not in columns_of_one(hits, [[1], [2], [3], [3]])


def test_a_latent_without_hits_has_nulls():
    found = text_columns(hits_of([hit(1, 0, [1, 0])]), np.array([[1, 2]], np.int32), 3, np.zeros((3, 2), np.int64))
    for latent in (0, 2):
        assert found["top_tokens"][latent] is None
        assert all(np.isnan(found[name][latent]) for name in ("token_purity", "token_entropy", "input_score"))
    assert found["token_purity"][1] == 1
    assert found["token_entropy"][1] == 0


def test_no_hits_at_all_give_nulls():
    found = text_columns(hits_of([]), np.zeros((1, 4), np.int32), 2, np.zeros((2, 3), np.int64))
    assert found.pop("top_tokens") == found.pop("top_token_counts") == [None, None]
    assert all(pd.isna(values).all() for values in found.values())


def table_of(**columns) -> pd.DataFrame:
    whole = {
        "count": 1,
        "density": 0.01,
        "token_purity": 0.5,
        "ngram_order": 0,
        "ngram_f1": 0.2,
        "logit_kurtosis": 3.0,
        "logit_skew": 0.0,
        "input_score": 0.0,
    }
    return pd.DataFrame([whole | columns])


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"count": 0, "density": 0.0, "token_purity": np.nan, "ngram_f1": np.nan}, DEAD),
        ({"density": 0.11, "token_purity": 1.0, "ngram_f1": 1.0}, DENSE),
        ({"density": 0.1}, OTHER),
        ({"token_purity": 0.9, "ngram_f1": 0.7}, SINGLE_TOKEN),
        ({"token_purity": 1.0, "ngram_f1": 0.6}, OTHER),
        ({"token_purity": 1.0, "ngram_order": 1, "ngram_f1": 0.7}, N_GRAM),
        ({"token_purity": 0.5, "ngram_f1": 0.7}, N_GRAM),
        ({"logit_kurtosis": 5.0, "logit_skew": 0.5, "input_score": 0.1}, OUTPUT_LIKE),
        ({"logit_kurtosis": 5.0, "logit_skew": 0.5, "input_score": 0.2}, OTHER),
        ({"logit_kurtosis": 5.0, "logit_skew": -0.5}, OTHER),
        ({"logit_kurtosis": 4.0, "logit_skew": 0.5}, OTHER),
        ({}, OTHER),
    ],
)
def test_a_latent_belongs_to_the_first_class_that_fits(columns: dict, kind: str):
    assert classes(table_of(**columns)) == [kind]


def test_the_limits_are_settings():
    assert classes(table_of(density=0.11), Classes(dense=0.2)) == [OTHER]
    assert classes(table_of(ngram_f1=0.5), Classes(ngram_f1=0.5)) == [N_GRAM]


def test_without_text_latents_are_dead_dense_or_other():
    table = pd.DataFrame({"count": [0, 5, 5], "density": [0.0, 0.5, 0.05]})
    assert classes(table) == [DEAD, DENSE, OTHER]


def planted(**columns) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Latents on " the", on " the" after " of", on two tokens, before " return", on what nothing in the text
    explains, and dead."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 6, (600, 16)).astype(np.int32)
    codes = np.zeros((*tokens.shape, 6))
    codes[:, :, 0] = tokens == 1
    codes[:, 1:, 1] = (tokens[:, 1:] == 1) & (tokens[:, :-1] == 0)
    codes[:, :, 2] = (tokens == 3) | (tokens == 5)
    codes[:, :-1, 3] = (tokens[:, 1:] == 2) * generator.random((600, 15))
    codes[:, :, 4] = generator.random(tokens.shape) * (generator.random(tokens.shape) < 0.05)
    hits = hits_where(codes, top=60, sampled=60)
    on = codes != 0
    table = pd.DataFrame({"latent": np.arange(6), "count": on.sum((0, 1)), "density": 0.01})
    table = table.assign(**text_columns(hits, tokens, 6), **columns)
    return table.assign(**{"class": classes(table)}), hits, tokens


def test_planted_latents_get_their_class_and_label():
    table, hits, tokens = planted()
    assert table["class"].tolist() == [SINGLE_TOKEN, N_GRAM, N_GRAM, OTHER, OTHER, DEAD]
    found = labels(table, hits, tokens, STRINGS)
    assert found[0] == "' the'"
    assert found[1] == "' the' after ' of'"
    assert sorted(found[2].split(", ")) == [r'"\'s"'.replace("\\", ""), r"'\n'"]
    assert found[3].endswith(" before ' return'")
    assert found[4].count("'") >= 4
    assert found[5] == "never on"


def test_an_output_like_latent_is_labelled_by_what_it_promotes():
    writes = {"logit_kurtosis": 50.0, "logit_skew": 5.0, "input_score": 0.0}
    table, hits, tokens = planted(**writes, logit_top=[np.array([2, 3, 4, 0], np.int32)] * 6)
    assert table["class"].tolist() == [SINGLE_TOKEN, N_GRAM, N_GRAM, OUTPUT_LIKE, OUTPUT_LIKE, DEAD]
    assert labels(table, hits, tokens, STRINGS)[3] == r"promotes ' return', '\n', 'x'"


def test_a_dense_latent_is_labelled_as_such():
    table, hits, tokens = planted()
    assert labels(table.assign(**{"class": DENSE}), hits, tokens, STRINGS)[0] == "dense: ' the'"


def test_a_token_without_a_string_is_named_by_its_id():
    table, hits, tokens = planted()
    assert labels(table, hits, tokens, {})[0] == "'<1>'"


def test_aggregates_are_means_over_the_latents_that_are_alive():
    table, _, _ = planted(
        logit_kurtosis=[3.0, 4.0, 100.0, 5.0, 3.0, 9.0],
        decoder_cosines=[np.array([0.5, 0.1]), np.array([0.3]), None, np.array([]), np.array([0.1]), np.array([1.0])],
    )
    found = aggregates(aggregated(table))
    assert set(found) <= set(MEANINGS)
    assert found["dead_share"] == pytest.approx(1 / 6)
    assert found["single_token_share"] == pytest.approx(1 / 5)
    assert found["ngram_share"] == pytest.approx(2 / 5)
    assert found["dense_share"] == found["output_like_share"] == 0
    assert found["logit_kurtosis"] == 4
    assert found["neighbour_cosine"] == pytest.approx(0.3)
    assert found["token_purity"] == pytest.approx(table["token_purity"][:5].mean())
    assert found["effective_tokens"] == pytest.approx((2 ** table["token_entropy"][:5]).mean())
    assert found["ngram_f1"] == pytest.approx(table["ngram_f1"][:5].mean())


def test_numbers_of_text_are_left_out_without_text():
    table = pd.DataFrame({"count": [0, 5], "density": [0.0, 0.5], "encoder_decoder_cosine": [0.1, 0.9]})
    found = aggregates(aggregated(table.assign(**{"class": classes(table)})))
    assert found == {"dead_share": 0.5, "dense_share": 1.0, "encoder_decoder_cosine": pytest.approx(0.9)}


def test_a_dictionary_of_dead_latents_has_only_their_share():
    table = pd.DataFrame({"count": [0], "density": [0.0]})
    assert aggregates(aggregated(table.assign(**{"class": classes(table)}))) == {"dead_share": 1.0}


def test_the_store_keeps_the_columns(tmp_path):
    table, hits, tokens = planted()
    table = table.assign(label=labels(table, hits, tokens, STRINGS))
    assert {*table.columns} <= {*LATENT_COLUMNS}
    assert {*hits.columns} == {*HIT_COLUMNS}
    meta = Meta(
        kind="text", d_sae=6, architecture="topk", weights="", positions=1, excluded={}, contexts=600, context=16,
        window=16, top=60, per_bin=60, bin_edges=[], seed=0,
    )  # fmt: skip
    write_latent_store(tmp_path / "latents", latent_rows(table), [hits], meta, tokens=tokens, strings=STRINGS)
    read = LatentStore(tmp_path / "latents").table
    assert read["label"].tolist() == table["label"].tolist()
    assert read["ngram_order"].to_numpy()[1] == 1
    assert np.isnan(read["ngram_order"].to_numpy()[5])
    assert read["top_tokens"][5] is None
    assert read["top_tokens"][1].tolist() == [1]

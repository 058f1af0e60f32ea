"""The n-gram predictor, compared with a slow one and on planted latents."""

import numpy as np
import pandas as pd
import pytest

from fsae.latents.ngrams import GAIN, ORDERS, ngram_columns
from fsae.outputs.latent_store import SAMPLED
from tests.latents.tables import hit, hits_of, hits_where


def brute_force(hits: pd.DataFrame, tokens: np.ndarray, latent: int) -> tuple[float, float, int | None]:
    """Correlation, F1 and order by the definition, one position at a time."""
    windows: dict[int, tuple[int, list]] = {}
    names = ("latent", "rank", "context", "begin", "values")
    rows = list(zip(*(hits[name].tolist() for name in names), strict=True))
    for odd in (0, 1):
        for own, rank, row, begin, values in rows:
            if own != latent or rank % 2 != odd or values is None or row in windows:
                continue
            texts = [
                (tuple(tokens[row, p - back] if p >= back else -1 for back in range(ORDERS)), abs(code))
                for p, code in enumerate(values, begin)
                if not np.isnan(code)
            ]
            windows[row] = (rank, texts)
    if not windows:
        return np.nan, np.nan, None
    largest = max(code for _, texts in windows.values() for _, code in texts)

    def judged(fit: set[int], judge: set[int], modulus: int, order: int) -> tuple[float, float]:
        seen: dict[tuple, float] = {}
        for rank, texts in windows.values():
            if rank % modulus in fit:
                for context, code in texts:
                    for length in range(1, order + 2):
                        seen[context[:length]] = max(code, seen.get(context[:length], 0))
        predicted, wanted = [], []
        for rank, texts in windows.values():
            if rank % modulus in judge:
                for context, code in texts:
                    known = [length for length in range(order + 1, 0, -1) if context[:length] in seen]
                    predicted.append(seen[context[: known[0]]] if known else 0.0)
                    wanted.append(code)
        x, y = np.array(predicted), np.array(wanted)
        correlation = np.nan
        if len(y) and np.ptp(y):
            correlation = float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) else 0.0
        on, called = y > largest / 2, x > largest / 2
        total = on.sum() + called.sum()
        return correlation, 2 * (on & called).sum() / total if total else np.nan

    trials = [np.nan_to_num(judged({0}, {2}, 4, order)[0], nan=-np.inf) for order in range(ORDERS)]
    best = next(order for order, found in enumerate(trials) if found >= max(trials) - GAIN)
    correlation, f1 = judged({0}, {1}, 2, best)
    return correlation, f1, None if np.isnan(correlation) and np.isnan(f1) else best


@pytest.mark.parametrize("latents_at_once", [1, 3, 100])
def test_scores_are_those_of_a_slow_predictor(latents_at_once: int):
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 6, (40, 12)).astype(np.int32)
    codes = generator.random((40, 12, 7)) * (generator.random((40, 12, 7)) < 0.2)
    codes[:, :, 1] *= -1
    codes[:, :, 2] = tokens == 3  # a token
    codes[:, 1:, 3] = (tokens[:, 1:] == 3) & (tokens[:, :-1] == 2)  # two tokens
    codes[:, 0, 3] = 0
    codes[:, :, 4] = 0  # dead
    codes[2:, :, 5] = 0  # two contexts
    hits = hits_where(codes, top=9, sampled=10, window=4)
    # Codes that were not read, a window that was not read, and one context in both groups.
    hits.at[3, "values"] = np.where(np.arange(len(hits.at[3, "values"])) == 0, np.nan, hits.at[3, "values"])
    hits.at[5, "values"] = None
    double = hits[hits["latent"] == 0].iloc[[1, 2]].assign(group=SAMPLED, rank=[4, 5])
    hits = pd.concat([hits, double]).sample(frac=1, random_state=0)
    found = ngram_columns(hits, tokens, 7, latents_at_once=latents_at_once)
    for latent in range(7):
        correlation, f1, order = brute_force(hits, tokens, latent)
        np.testing.assert_allclose(found["ngram_correlation"][latent], correlation, atol=1e-6, err_msg=str(latent))
        np.testing.assert_allclose(found["ngram_f1"][latent], f1, err_msg=str(latent))
        assert (None if pd.isna(found["ngram_order"][latent]) else found["ngram_order"][latent]) == order


def planted(length: int) -> dict:
    """The scores of a latent that is on after `length` given tokens, in text of six tokens."""
    tokens = np.random.default_rng(1).integers(0, 6, (2000, 16)).astype(np.int32)
    wanted = np.arange(length)
    codes = np.zeros((*tokens.shape, 1))
    for end in range(length - 1, 16):
        codes[:, end, 0] = (tokens[:, end - length + 1 : end + 1] == wanted).all(1)
    return {name: values[0] for name, values in ngram_columns(hits_where(codes, top=60, sampled=60), tokens, 1).items()}


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_order_of_a_planted_ngram_is_found(length: int):
    scores = planted(length)
    assert scores["ngram_order"] == length - 1
    # Three tokens that no fitted window has are predicted by the last two.
    assert scores["ngram_f1"] == pytest.approx(1, abs=0.02)
    assert scores["ngram_correlation"] == pytest.approx(1, abs=0.02)


def test_the_arithmetic_of_a_small_case():
    # Fitted to the window of rank 0: the token 7 has had codes 4 and 1, so 4 is predicted wherever it is.
    tokens = np.array([[7, 8, 7, 8], [7, 8, 9, 7]], np.int32)
    hits = hits_of([hit(0, 0, [4, 0, 1, 0]), hit(0, 1, [3, 0, 3, 1], rank=1)])
    found = ngram_columns(hits, tokens, 1)
    # Predicted 4, 0, 0, 4; codes 3, 0, 3, 1. Above half of the largest code, 2: one right, one missed, one false.
    assert found["ngram_f1"][0] == pytest.approx(0.5)
    assert found["ngram_correlation"][0] == pytest.approx(np.corrcoef([4, 0, 0, 4], [3, 0, 3, 1])[0, 1])
    assert found["ngram_order"][0] == 0


def test_a_context_that_is_fitted_is_not_judged():
    tokens = np.array([[1, 2, 3]], np.int32)
    found = ngram_columns(hits_of([hit(0, 0, [0, 1, 0]), hit(0, 0, [0, 1, 0], rank=1, group=SAMPLED)]), tokens, 1)
    assert np.isnan(found["ngram_f1"][0])
    assert pd.isna(found["ngram_order"][0])


def test_a_prediction_that_is_constant_has_no_correlation():
    tokens = np.array([[1, 1], [2, 3]], np.int32)
    found = ngram_columns(hits_of([hit(0, 0, [1, 1]), hit(0, 1, [1, 0], rank=1)]), tokens, 1)
    assert found["ngram_correlation"][0] == 0
    assert found["ngram_f1"][0] == 0


def test_no_hits_give_nulls():
    found = ngram_columns(hits_of([]), np.zeros((1, 4), np.int32), 3)
    assert np.isnan(found["ngram_correlation"]).all()
    assert pd.isna(found["ngram_order"]).all()

"""The n-gram predictor: how well a latent's codes follow from the token and the ones before it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

ORDERS = 3
# Latents whose windows are read at a time: some hundred thousand positions, for which a CPU's cache has room.
_LATENTS_AT_ONCE = 32
# The best order is the shortest one whose correlation is at most this far below the best.
GAIN = 0.01
# Stands before the first token of a row.
_NONE = -1


def ngram_columns(
    hits: pd.DataFrame,
    tokens: Int[np.ndarray, "contexts context"],
    d_sae: int,
    gain: float = GAIN,
    latents_at_once: int = _LATENTS_AT_ONCE,
) -> dict[str, Any]:
    """Return the scores of every latent's n-gram predictor, and its order.

    The predictor of order n (Foote et al. 2023, arXiv 2304.12918, and 2305.19911) reads a token and the n tokens before
    it. It predicts the largest absolute code that it has seen at these n + 1 tokens; if it has not seen them, that of
    the last n of them, and so on; 0 for a token that it has not seen. It is fitted to the windows of a latent's hits of
    even rank and judged on those of odd rank. A context is used once, and for fitting if it is in both.

    ngram_correlation: Pearson correlation of predictions and codes over the positions of the held-out windows; 0 if the
        prediction is constant, null if the codes are.
    ngram_f1: F1 of prediction > max / 2 for code > max / 2, with the latent's largest code in all its windows; null if
        there is neither.
    ngram_order: the shortest n from 0 to 2 whose correlation is within `gain` of the best, if the windows of ranks 0,
        4, 8, ... predict those of ranks 2, 6, 10, ... Held-out windows have no part in this choice.

    All windows are of contexts in which the latent is on, so precision is measured within these only.

    Args:
        hits: of the latent store, in any order. Codes that are NaN are left out.
        tokens: all text that was read.
        d_sae: latents.
        gain: see above.
        latents_at_once: latents whose windows are read at a time.
    """
    scores = {name: np.full(d_sae, np.nan) for name in ("ngram_correlation", "ngram_f1", "ngram_order")}
    for positions, first, count in _positions(hits, tokens, d_sae, latents_at_once):
        held_out = positions.rank % 2 == 1
        trial = positions.where(~held_out)
        validation = trial.rank % 4 == 2
        judge = _Judge(trial, validation, count)
        trials = [judge.correlation(predicted[validation]) for predicted in trial.predictions(~validation)]
        # An order without a correlation is no better than any other.
        correlations = np.nan_to_num(np.stack(trials), nan=-np.inf)
        best = (correlations >= correlations.max(0) - gain).argmax(0)
        judge = _Judge(positions, held_out, count)
        final = [
            (judge.correlation(predicted[held_out]), judge.f1(predicted[held_out]))
            for predicted in positions.predictions(~held_out)
        ]
        every = np.arange(count)
        correlation, f1 = (np.stack(found)[best, every] for found in zip(*final, strict=True))
        latents = slice(first, first + count)
        scores["ngram_correlation"][latents], scores["ngram_f1"][latents] = correlation, f1
        scores["ngram_order"][latents] = np.where(np.isnan(f1) & np.isnan(correlation), np.nan, best)
    return scores | {"ngram_order": pd.array(scores["ngram_order"], dtype="Int32")}


@dataclass(frozen=True, eq=False)
class _Positions:
    """Positions of the windows of some latents, those of one latent together.

    Attributes:
        latent: counted from the first of these latents.
        rank: of the position's hit within its group and bin.
        code: absolute.
        half: half of the largest code of the position's latent.
        context: the token there, the one before it, and the one before that; `_NONE` before the row's first.
    """

    latent: Int[np.ndarray, " positions"]
    rank: Int[np.ndarray, " positions"]
    code: Float[np.ndarray, " positions"]
    half: Float[np.ndarray, " positions"]
    context: list[Int[np.ndarray, " positions"]]

    def where(self, chosen: Bool[np.ndarray, " positions"]) -> "_Positions":
        return _Positions(
            self.latent[chosen],
            self.rank[chosen],
            self.code[chosen],
            self.half[chosen],
            [each[chosen] for each in self.context],
        )

    def predictions(self, fitted: Bool[np.ndarray, " positions"]) -> Iterator[Float[np.ndarray, " positions"]]:
        """Yield the predictions of each order at all positions, after a fit to some of them."""
        keys, predicted, seen = _largest(self._keys(self.latent, 0), self.code, fitted)
        predicted = np.maximum(predicted, 0)
        yield predicted
        # A longer context matters only if a shorter one predicts something: its largest code is no larger.
        still = np.flatnonzero(predicted > 0)
        keys = keys[still]
        for order in range(1, ORDERS):
            keys, largest, seen = _largest(self._keys(keys, order, still), self.code[still], fitted[still])
            predicted = predicted.copy()
            predicted[still[seen]] = largest[seen]
            yield predicted
            longer = seen & (largest > 0)
            still, keys = still[longer], keys[longer]

    def _keys(self, keys: np.ndarray, order: int, some: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return numbers of each pair of a key and the token of this order."""
        tokens = self.context[order][some]
        return keys * (int(tokens.max(initial=0)) + 2) + tokens + 1


class _Judge:
    """The codes at some positions, with which predictions are compared.

    Args:
        positions: those of one latent together.
        judged: the positions that are compared.
        latents: number of latents.
    """

    def __init__(self, positions: _Positions, judged: Bool[np.ndarray, " positions"], latents: int):
        self._begins = np.searchsorted(positions.latent[judged], np.arange(latents + 1))
        self._count = np.maximum(np.diff(self._begins), 1)
        self._code, self._half = positions.code[judged].astype(np.float64), positions.half[judged]
        self._is_high = self._code > self._half
        self._sum, self._high = self._total(self._code), self._total(self._is_high)
        self._variation = self._about_mean(self._code, self._code, self._sum, self._sum)

    def correlation(self, predicted: Float[np.ndarray, " judged"]) -> Float[np.ndarray, " latents"]:
        """Return every latent's correlation of prediction and code; 0 for a constant prediction, NaN for constant
        codes."""
        x = predicted.astype(np.float64)
        total = self._total(x)
        variation = self._about_mean(x, x, total, total)
        common = self._about_mean(x, self._code, total, self._sum)
        with np.errstate(divide="ignore", invalid="ignore"):
            correlation = np.where(variation > 0, common / np.sqrt(variation * self._variation), 0.0)
        return np.where(self._variation > 0, correlation, np.nan)

    def f1(self, predicted: Float[np.ndarray, " judged"]) -> Float[np.ndarray, " latents"]:
        """Return every latent's F1 at half of its largest code; NaN if no code and no prediction is above."""
        called = predicted > self._half
        either = self._high + self._total(called)
        both = self._total(called & self._is_high)
        return np.divide(2 * both, either, out=np.full(len(either), np.nan), where=either > 0)

    def _about_mean(self, x: np.ndarray, y: np.ndarray, x_sum: np.ndarray, y_sum: np.ndarray) -> np.ndarray:
        """Return every latent's sum of (x - mean) (y - mean), 0 if it is within rounding of 0."""
        sums, products = self._total(x * y), x_sum * y_sum / self._count
        return np.where(np.abs(sums - products) > 1e-12 * np.abs(products), sums - products, 0.0)

    def _total(self, values: np.ndarray) -> Float[np.ndarray, " latents"]:
        # `reduceat` gives one value, not 0, for no values, and accepts no beginning at the end.
        totals = np.add.reduceat(np.append(values, 0), self._begins[:-1], dtype=np.float64)
        return np.where(np.diff(self._begins) > 0, totals, 0.0)


def _largest(
    keys: Int[np.ndarray, " positions"], codes: Float[np.ndarray, " positions"], fitted: Bool[np.ndarray, " positions"]
) -> tuple[Int[np.ndarray, " positions"], Float[np.ndarray, " positions"], Bool[np.ndarray, " positions"]]:
    """Return for each position the number of its key, the largest fitted code with it, and whether there is any."""
    order = np.argsort(keys)
    in_order = keys[order]
    is_first = np.ones(len(keys), bool)
    is_first[1:] = in_order[1:] != in_order[:-1]
    number = np.empty(len(keys), np.int64)
    number[order] = np.cumsum(is_first) - 1
    # No fitted code is negative, so -1 says that there is none.
    usable = np.where(fitted, codes, np.float32(-1))[order]
    begins = np.flatnonzero(is_first)
    largest = np.maximum.reduceat(usable, begins) if len(begins) else usable
    each = largest[number]
    return number, each, each >= 0


def _positions(
    hits: pd.DataFrame, tokens: Int[np.ndarray, "contexts context"], d_sae: int, latents_at_once: int
) -> Iterator[tuple[_Positions, int, int]]:
    """Yield the positions of the windows of successive latents, with the first of these latents and their number."""
    rank, rows, begins, latents = (hits[name].to_numpy(np.int64) for name in ("rank", "context", "begin", "latent"))
    windows = hits["values"].to_numpy()
    # Even ranks first, so that a context of two hits is used for fitting.
    order = np.lexsort((rank % 2, rows, latents))
    order = order[hits["values"].notna().to_numpy()[order]]
    again = np.zeros(len(order), bool)
    again[1:] = (np.diff(latents[order]) == 0) & (np.diff(rows[order]) == 0)
    order = order[~again]
    rank, rows, begins, latents, windows = (each[order] for each in (rank, rows, begins, latents, windows))
    lengths = np.fromiter(map(len, windows), np.int64, len(windows))
    width, text = tokens.shape[1], tokens.reshape(-1)
    for first in range(0, d_sae, latents_at_once):
        count = min(latents_at_once, d_sae - first)
        own = slice(*np.searchsorted(latents, [first, first + count]))
        if own.start == own.stop:
            continue
        code = np.abs(np.concatenate(windows[own]).astype(np.float32))
        hit = np.repeat(np.arange(own.stop - own.start), lengths[own])
        ends = np.cumsum(lengths[own])
        place = begins[own][hit] + np.arange(len(hit)) - (ends - lengths[own])[hit]
        known = ~np.isnan(code)
        code, hit, place = code[known], hit[known], place[known]
        flat = rows[own][hit] * width + place
        context = [np.where(place >= back, text.take(flat - back, mode="clip"), _NONE) for back in range(ORDERS)]
        assert place.max(initial=0) < width
        latent = latents[own][hit] - first
        largest = np.zeros(count, np.float32)
        np.maximum.at(largest, latent, code)
        yield _Positions(latent, rank[own][hit], code, largest[latent] / 2, context), first, count

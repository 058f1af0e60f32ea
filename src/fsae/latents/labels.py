"""Facts, scores, classes and labels of latents that follow from their top contexts, without a language model as judge.

All of them use absolute codes, so that a latent with negative codes counts like any other.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from fsae.latents.ngrams import ngram_columns
from fsae.outputs.latent_store import TOP
from fsae.outputs.results import Better, Meaning, Shown

DEAD, DENSE, SINGLE_TOKEN, N_GRAM, OUTPUT_LIKE, OTHER = (
    "dead",
    "dense",
    "single-token",
    "n-gram",
    "output-like",
    "other",
)
# Tokens that a label names at most.
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The limits between the classes of latents. A latent belongs to the first class that fits, in this order.

    dead: it was on for no sample.
    dense: its density is above `dense`. delphi logs the share of latents above 10 %.
    single-token: its token purity is at least `token_purity`, the best n-gram predictor reads the token alone, and that
        predictor's F1 is at least `ngram_f1`. delphi's rule is that 90 % of the 50 top peaks are one token
        (`delphi/latents/cache.py`); the predictor adds that other codes of the token are large too.
    n-gram: the F1 of the best n-gram predictor is at least `ngram_f1`. Neuron2Graph (Foote et al. 2023, arXiv
        2304.12918) reports this F1 and draws no limit; the limit is fsae's own.
    output-like: kurtosis and skew of its logit effects are at least `logit_kurtosis` and `logit_skew`, and its input
        score is at most `input_score`. High kurtosis and skew are the mark of latents that promote a set of tokens
        (Bloom and Lin 2024, "Understanding SAE features with the logit lens"); a low input score says that these are
        not the tokens that it reads (Arad et al. 2025, arXiv 2505.20063). The limits are fsae's own: a normal
        distribution has kurtosis 3 and skew 0.
    other: all others.
    """

    dense: float = 0.1
    token_purity: float = 0.9
    ngram_f1: float = 0.7
    logit_kurtosis: float = 5.0
    logit_skew: float = 0.5
    input_score: float = 0.1


def text_columns(
    hits: pd.DataFrame,
    tokens: Int[np.ndarray, "contexts context"],
    d_sae: int,
    input_tokens: Int[np.ndarray, "d_sae top"] | None = None,
) -> dict[str, Any]:
    """Return the columns of the latent store that compare a latent's codes with the text.

    With a_c the code at the peak of top context c, and t_c the token there:

    token_purity: sum of a_c over contexts with the commonest t_c, over the sum of a_c. `next_token_purity` and
        `previous_token_purity` are the same for the token after and before the peak, over contexts that have one.
    token_entropy: minus the sum of p_t log2 p_t, with p_t the share of contexts with the peak token t; 2 to this power
        is the effective number of tokens.
    input_score: share of contexts with t_c among `input_tokens` (Arad et al. 2025, arXiv 2505.20063).

    Tokens are counted; equal counts are ordered by the sum of their codes. A latent without top contexts has nulls.

    Args:
        hits: of the latent store, in any order.
        tokens: all text that was read.
        d_sae: latents.
        input_tokens: every latent's top logits, from `logit_columns`; without them there is no input score.
    """
    is_top = hits["group"].to_numpy() == TOP
    latents, rows, places = (hits[name].to_numpy(np.int64)[is_top] for name in ("latent", "context", "position"))
    value = np.abs(hits["value"].to_numpy(np.float64)[is_top])
    context = tokens.shape[1]

    peaks = _Counted(latents, np.asarray(tokens[rows, places], np.int64), value, d_sae)
    after, before = (
        _Counted(latents[has], np.asarray(tokens[rows[has], places[has] + step], np.int64), value[has], d_sae)
        for step, has in ((1, places < context - 1), (-1, places > 0))
    )
    listed = peaks.listed()
    columns: dict[str, Any] = {
        "token_purity": peaks.purity(),
        "token_entropy": peaks.entropy(),
        "next_token_purity": after.purity(),
        "previous_token_purity": before.purity(),
        "top_tokens": [None if found is None else found[0] for found in listed],
        "top_token_counts": [None if found is None else found[1] for found in listed],
    }
    if input_tokens is not None:
        among = (input_tokens[latents] == np.asarray(tokens[rows, places])[:, None]).any(1)
        contexts = np.bincount(latents, minlength=d_sae)
        columns["input_score"] = _ratio(np.bincount(latents[among], minlength=d_sae), contexts)
    return columns | ngram_columns(hits, tokens, d_sae)


class _Counted:
    """The tokens at one place of the top contexts, counted for every latent.

    Args:
        latents: the latent of each context.
        tokens: the token there.
        values: the code at the context's peak, not negative.
        d_sae: latents.
    """

    def __init__(self, latents: np.ndarray, tokens: np.ndarray, values: np.ndarray, d_sae: int):
        self._d_sae = d_sae
        width = int(tokens.max(initial=0)) + 1
        keys, each = np.unique(latents * width + tokens, return_inverse=True)
        self._latents, self._tokens = np.divmod(keys, width)
        self._counts = np.bincount(each, minlength=len(keys))
        self._sums = np.bincount(each, values, minlength=len(keys))
        order = np.lexsort((self._tokens, -self._sums, -self._counts, self._latents))
        for name in ("_latents", "_tokens", "_counts", "_sums"):
            setattr(self, name, getattr(self, name)[order])
        # Where each latent's tokens begin; the first of them is the commonest.
        self._begins = np.searchsorted(self._latents, np.arange(d_sae + 1))

    def purity(self) -> Float[np.ndarray, " d_sae"]:
        """Return the share of the codes on the commonest token; NaN for none."""
        sums = np.bincount(self._latents, self._sums, minlength=self._d_sae)
        commonest = np.zeros(self._d_sae)
        has = self._begins[1:] > self._begins[:-1]
        commonest[has] = self._sums[self._begins[:-1][has]]
        return _ratio(commonest, sums)

    def entropy(self) -> Float[np.ndarray, " d_sae"]:
        """Return the entropy of the tokens in bits; NaN for none."""
        counts = np.bincount(self._latents, self._counts, minlength=self._d_sae)
        share = self._counts / counts[self._latents]
        entropy = np.bincount(self._latents, -share * np.log2(share), minlength=self._d_sae)
        return np.where(counts > 0, np.abs(entropy), np.nan)

    def listed(self) -> list[tuple[np.ndarray, np.ndarray] | None]:
        """Return every latent's tokens with their counts, the commonest first; None for none."""
        tokens, counts = self._tokens.astype(np.int32), self._counts.astype(np.int32)
        ranges = zip(self._begins[:-1].tolist(), self._begins[1:].tolist(), strict=True)
        return [(tokens[begin:end], counts[begin:end]) if end > begin else None for begin, end in ranges]


def _ratio(part: np.ndarray, whole: np.ndarray) -> Float[np.ndarray, " latents"]:
    """Return part / whole, NaN for a whole of 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def classes(table: pd.DataFrame, limits: Classes | None = None) -> list[str]:
    """Return the class of every latent, by the columns of the latent store; columns that the table lacks fit no class.

    `Classes` has the definitions.
    """
    limits = limits or Classes()

    # A comparison with NaN is false.
    token_alone = _numbers(table, "ngram_order") == 0
    predicted = _numbers(table, "ngram_f1") >= limits.ngram_f1
    writes = _numbers(table, "logit_kurtosis") >= limits.logit_kurtosis
    writes &= _numbers(table, "logit_skew") >= limits.logit_skew
    fitting = {
        DEAD: _numbers(table, "count") == 0,
        DENSE: _numbers(table, "density") > limits.dense,
        SINGLE_TOKEN: (_numbers(table, "token_purity") >= limits.token_purity) & token_alone & predicted,
        N_GRAM: predicted,
        OUTPUT_LIKE: writes & (_numbers(table, "input_score") <= limits.input_score),
    }
    return np.select(list(fitting.values()), list(fitting), OTHER).tolist()


def _numbers(table: pd.DataFrame, name: str) -> Float[np.ndarray, " latents"]:
    """Return a column with NaN for nulls, and NaN for a column that the table lacks."""
    return table[name].to_numpy(np.float64, na_value=np.nan) if name in table else np.full(len(table), np.nan)


def labels(
    table: pd.DataFrame,
    hits: pd.DataFrame,
    tokens: Int[np.ndarray, "contexts context"],
    strings: Mapping[int, str],
    limits: Classes | None = None,
) -> list[str]:
    """Return a few words on every latent, by its class and the columns of the latent store.

    Tokens are quoted as in Python, so that spaces and line breaks are visible. Examples: `' the'`, `' the' after
    ' of'`, `promotes ' return'`, `' a', ' an', ' the' before ' new'`.

    Args:
        table: with `class` and the columns of `text_columns`, and with those of `logit_columns` if they are known.
        hits: of the latent store.
        tokens: all text that was read.
        strings: token id to text.
        limits: of the classes; a neighbour of the peak is named if its purity is at least `token_purity`.
    """
    limits = limits or Classes()
    is_top = hits["group"].to_numpy() == TOP
    latents, rows, places = (hits[name].to_numpy(np.int64)[is_top] for name in ("latent", "context", "position"))
    by_latent = np.argsort(latents, kind="stable")
    begins = np.searchsorted(latents[by_latent], np.arange(len(table) + 1))

    def quoted(*ids: int) -> str:
        return repr("".join(strings.get(token, f"<{token}>") for token in ids))

    def listed(ids: np.ndarray | None) -> str:
        return "" if ids is None else ", ".join(map(quoted, ids[:_NAMED].tolist()))

    def around(latent: int, begin: int, end: int) -> str:
        """Quote the commonest texts from `begin` to `end`, counted from the peak, in the latent's top contexts."""
        found = Counter(
            tuple(tokens[rows[i], max(0, places[i] + begin) : places[i] + end].tolist())
            for i in by_latent[begins[latent] : begins[latent + 1]]
        )
        return ", ".join(quoted(*ids) for ids, _ in found.most_common(_NAMED) if ids)

    def described(
        latent: int,
        kind: str,
        top_tokens: np.ndarray | None,
        logit_top: np.ndarray | None,
        ngram_order: int,
        previous_purity: float,
        next_purity: float,
    ) -> str:
        if kind == DEAD:
            return "never on"
        if kind == OUTPUT_LIKE:
            return f"promotes {listed(logit_top)}"
        if top_tokens is None:
            return kind
        text = listed(top_tokens[:1] if kind == SINGLE_TOKEN else top_tokens)
        order = ngram_order if kind == N_GRAM else int(previous_purity >= limits.token_purity)
        if order and kind != SINGLE_TOKEN and (before := around(latent, -order, 0)):
            text += f" after {before}"
        if next_purity >= limits.token_purity:
            text += f" before {around(latent, 1, 2)}"
        return f"dense: {text}" if kind == DENSE else text

    names = ("class", "top_tokens", "logit_top")
    listed_columns = [table[name] if name in table else [None] * len(table) for name in names]
    order = np.nan_to_num(_numbers(table, "ngram_order")).astype(int)
    purities = [_numbers(table, f"{side}_token_purity") for side in ("previous", "next")]
    rows_of_table = zip(*listed_columns, order, *purities, strict=True)
    return [described(latent, *row) for latent, row in enumerate(rows_of_table)]


MEANINGS: dict[str, Meaning] = {
    "dead_share": Meaning("share of latents that are on for no sample", better=Better.less),
    "dense_share": Meaning("share of dense latents among those that are on at all", better=Better.less),
    "single_token_share": Meaning("share of single-token latents among those that are on at all"),
    "ngram_share": Meaning("share of n-gram latents among those that are on at all"),
    "output_like_share": Meaning("share of output-like latents among those that are on at all"),
    "token_purity": Meaning("mean share of the top codes on the commonest peak token"),
    "effective_tokens": Meaning("mean of 2^entropy of the peak tokens, their effective number"),
    "next_token_purity": Meaning("mean token purity of the token after the peak", shown=Shown.files),
    "previous_token_purity": Meaning("mean token purity of the token before the peak", shown=Shown.files),
    "ngram_f1": Meaning("mean F1 of the n-gram predictor on held-out windows"),
    "ngram_correlation": Meaning("mean correlation of the n-gram predictor with held-out codes"),
    "input_score": Meaning("mean share of peak tokens among the latent's 20 top logits"),
    "logit_kurtosis": Meaning("median kurtosis of the logit effects; 3 if they are normal"),
    "logit_skew": Meaning("mean skew of the logit effects", shown=Shown.files),
    "encoder_decoder_cosine": Meaning("mean cosine of encoder column and decoder row", shown=Shown.files),
    "neighbour_cosine": Meaning("mean cosine of the decoder row with the nearest other one", better=Better.less),
}


def aggregated(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a table that `aggregates` reads; they are small."""
    names = ["count", "class", "token_entropy", *MEANINGS]
    small = table.filter(items=names)
    if "decoder_cosines" in table:
        nearest = [found[0] if found is not None and len(found) else np.nan for found in table["decoder_cosines"]]
        small = small.assign(neighbour_cosine=np.array(nearest, float))
    return small


def aggregates(table: pd.DataFrame) -> dict[str, float]:
    """Return numbers of the dictionary as a whole, over latents that are alive; `MEANINGS` says what they mean.

    A mean is over the latents for which the number is known. A number that is known for no latent is left out, as all
    those of text are for other data.

    Args:
        table: the columns that `aggregated` returns.
    """
    alive = _numbers(table, "count") > 0
    numbers = {"dead_share": 1 - float(alive.mean())}
    kinds = table["class"].to_numpy()[alive]
    columns = {name: _numbers(table, name)[alive] for name in MEANINGS if name in table}
    columns["effective_tokens"] = 2 ** _numbers(table, "token_entropy")[alive]
    columns = {name: values[~np.isnan(values)] for name, values in columns.items()}
    known = {name for name, values in columns.items() if len(values)}
    for name, kind, needed in (
        ("dense_share", DENSE, None),
        ("single_token_share", SINGLE_TOKEN, "token_purity"),
        ("ngram_share", N_GRAM, "ngram_f1"),
        ("output_like_share", OUTPUT_LIKE, "logit_kurtosis"),
    ):
        if len(kinds) and (needed is None or needed in known):
            numbers[name] = float((kinds == kind).mean())
    for name in known:
        # A few latents that write one token have kurtoses of thousands.
        numbers[name] = float(np.median(columns[name]) if name == "logit_kurtosis" else columns[name].mean())
    return {name: numbers[name] for name in MEANINGS if name in numbers}

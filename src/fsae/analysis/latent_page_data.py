"""The data of the pages of latents: for one dictionary the scripts that hold its numbers, texts and hits.

index          the scalar columns of all latents, and their commonest peak tokens; of samples, every latent's top one
tokens         the texts of tokens, the commonest first; a token's place is its number within the shards
shard-0000     lists and hits of some latents
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from fsae.analysis.packed_arrays import in_few_bytes, pack, pack_lists, rounded, smallest
from fsae.outputs.explanations import Explanation, Scores, read_explanations
from fsae.outputs.latent_scaling import NU_ERROR, NU_RECONSTRUCTION, read_latent_scaling
from fsae.outputs.latent_store import LATENT_COLUMNS, TOP, LatentStore

# Latents whose hits are read from the store at a time.
_READ_AT_ONCE = 1024
# Lists show three digits: their numbers have a relative error below 1e-3. All others are the store's, in float32.
_LIST_BITS = 9
# A part of these lists would be wrong.
_WHOLE_LISTS = ("histogram", "trigger")
# A list with one number for each part, which are columns of the table.
_OF_PARTS = "relative_norms"
# Columns of explanations, and what they mean.
EXPLANATION_COLUMNS = {
    "explanation": "sentence by a language model about when the latent is on",
    "explained_by": "the language model that wrote the explanation and judged it",
    "detection": "share of excerpts that the explanation lets the language model judge correctly, with or without the "
    "latent on (balanced accuracy; 0.5 by chance)",
    "control_detection": "the same with the explanation of another latent",
    "fuzzing": "share of excerpts in which the explanation lets the language model judge correctly whether the marked "
    "tokens are those that the latent is on at (balanced accuracy; 0.5 by chance)",
    "control_fuzzing": "the same with the explanation of another latent",
}
# Columns of a crosscoder's latent scaling, and what they mean; the factors are of each part.
SCALING_COLUMNS = {
    "alone_at": f"part that the latent is of alone by latent scaling (nu_error below {NU_ERROR} and nu_reconstruction "
    f"below {NU_RECONSTRUCTION}); empty otherwise",
    "nu_error": "beta_error of another part over that of the latent's own: large if the other part has the direction "
    "and the dictionary does not write it there",
    "nu_reconstruction": "beta_reconstruction of another part over that of the latent's own: large if other latents "
    "write the direction there",
    "beta_error": "factor of the latent that fits the part's error and what the latent writes there, best",
    "beta_reconstruction": "factor of the latent that fits what all latents write at the part, best",
}
SCORES = ("detection", "control_detection", "fuzzing", "control_fuzzing")
# Numbers of all latents' top samples that the table may load.
_MOST_IN_TABLE = 2**22


@dataclass(frozen=True)
class PageSizes:
    """Sizes that decide how many bytes a latent takes.

    Attributes:
        latents_per_shard: latents in one file.
        top: top contexts per latent.
        top_window: positions on either side of a top context's peak.
        per_bin: samples per latent and activation bin, at most.
        samples: samples per latent, at most: the more bins a latent has, the fewer of each, but one at least.
        sample_window: positions on either side of a sample's peak.
        listed: entries of each list: neighbours, co-firing, logits.
        top_tokens: peak tokens per latent that the table shows and searches.
    """

    latents_per_shard: int = 128
    top: int = 20
    top_window: int = 24
    per_bin: int = 3
    samples: int = 24
    sample_window: int = 10
    listed: int = 10
    top_tokens: int = 5


DEFAULT_SIZES = PageSizes()


def columns() -> dict[str, str]:
    """Return the columns of the table, with the kind of their values: whole numbers, numbers or texts."""
    kinds = {"int": "whole", "flo": "number", "dou": "number", "str": "text"}
    found = {name: kinds.get(str(column.type)[:3]) for name, column in LATENT_COLUMNS.items()}
    return {name: kind for name, kind in found.items() if kind}


def _lists() -> dict[str, bool]:
    """Return the columns that hold lists of a latent's page, and whether of whole numbers."""
    return {
        name: "int" in str(column.type)
        for name, column in LATENT_COLUMNS.items()
        if str(column.type).startswith("list") and name != _OF_PARTS
    }


def scripts(store: LatentStore, sizes: PageSizes) -> Iterator[tuple[str, str]]:
    """Yield each script of one dictionary: its name and its packed arrays."""
    table = store.table
    numbers = np.empty(0, np.int64)
    if store.meta.kind == "text":
        ids = _tokens_by_count(store)
        texts = [store.strings.get(each, f"[token {each}]") for each in ids.tolist()]
        yield "tokens", pack({"ids": ids.astype(np.uint32), "texts": texts})
        numbers = np.empty(ids.max(initial=0) + 1, np.int64)
        numbers[ids] = np.arange(len(ids))
    tops = np.full(len(table), -1)
    step = sizes.latents_per_shard
    at_once = max(step, _READ_AT_ONCE // step * step)
    for begin in range(0, len(table), at_once):
        hits = _shown(store.hits_between(begin, begin + at_once), sizes)
        highest = hits.loc[~hits["sampled"] & (hits["rank"] == 0)]
        tops[highest["latent"]] = highest["context"]
        for first in range(begin, min(begin + at_once, len(table)), step):
            rows = table.iloc[first : first + step]
            own = hits.loc[hits["latent"].between(first, first + len(rows) - 1)]
            found = _texts(own, store, numbers, sizes) if store.meta.kind == "text" else _samples(own, store)
            yield f"shard-{first // step:04d}", pack(_list_arrays(rows, sizes) | _hits(own, first, len(rows)) | found)
    yield (
        "index",
        pack(
            _index(table, sizes)
            | _part_norms(store)
            | _scaling(store)
            | _top_samples(store, tops)
            | _explanations(store)
        ),
    )


def _index(table: pd.DataFrame, sizes: PageSizes) -> dict[str, np.ndarray | list[str]]:
    arrays: dict[str, np.ndarray | list[str]] = {}
    for name, kind in columns().items():
        if kind == "text":
            arrays[name] = [text if isinstance(text, str) else "" for text in table[name]]
        elif kind == "whole":
            # A null of a column of whole numbers makes it one of floats.
            values = table[name].to_numpy(np.float64, na_value=np.nan)
            fits = np.isfinite(values).all() and values.min(initial=0) >= 0 and values.max(initial=0) < 2**32
            arrays[name] = smallest(values.astype(np.int64)) if fits else values
        else:
            arrays[name] = table[name].to_numpy(np.float32, na_value=np.nan)
    tokens = [() if each is None else each[: sizes.top_tokens] for each in table["top_tokens"]]
    return arrays | pack_lists("top_tokens", tokens, np.uint32)


def _part_norms(store: LatentStore) -> dict[str, np.ndarray]:
    """Return the relative norms of all latents at each part, by its number; nothing if there are no parts."""
    if store.meta.parts is None:
        return {}
    norms = np.stack(store.table[_OF_PARTS].to_list()).astype(np.float32)
    return {f"relative_norm_{number}": norms[:, number] for number in range(len(store.meta.parts))}


def _scaling(store: LatentStore) -> dict[str, np.ndarray | list[str]]:
    """Return each latent's factors of latent scaling and their ratios; nothing if its run has not measured them."""
    table = scaling_of(store)
    if table is None:
        return {}
    own = zip(table["part"], table["specific"], strict=True)
    found: dict[str, np.ndarray | list[str]] = {"alone_at": [part if alone else "" for part, alone in own]}
    for name in ("nu_error", "nu_reconstruction"):
        found[name] = np.array(table[name], np.float32)
    for number, part in enumerate(store.meta.parts or ()):
        for name in ("beta_error", "beta_reconstruction"):
            found[f"{name}_{number}"] = np.array(table[f"{name} {part}"], np.float32)
    return found


def scaling_of(store: LatentStore) -> dict[str, list[Any]] | None:
    """Return the table of a crosscoder's latent scaling; None if its run has not measured it."""
    table = None if store.meta.parts is None else read_latent_scaling(store.folder, store.meta.d_sae)
    return table if table is not None and "specific" in table else None


def _explanations(store: LatentStore) -> dict[str, np.ndarray | list[str]]:
    """Return the explanation of each latent, the model that wrote it, and its scores; nothing if no latent has one."""
    found = {latent: each for latent, each in explanations_of(store).items() if each.explanation}
    if not found:
        return {}
    latents = range(store.meta.d_sae)
    texts = {
        "explanation": [found[latent].explanation or "" if latent in found else "" for latent in latents],
        "explained_by": [found[latent].model if latent in found else "" for latent in latents],
    }
    scores = {
        name: np.array([_accuracy(getattr(found.get(latent), name, None)) for latent in latents], np.float32)
        for name in SCORES
    }
    return texts | scores


def explanations_of(store: LatentStore) -> dict[int, Explanation]:
    """Return the explanations of a store's latents, by latent."""
    return read_explanations(store.folder, store.meta.weights)


def _accuracy(scores: Scores | None) -> float:
    return np.nan if scores is None or scores.balanced_accuracy is None else scores.balanced_accuracy


def _list_arrays(rows: pd.DataFrame, sizes: PageSizes) -> dict[str, np.ndarray]:
    arrays = {}
    for name, whole in _lists().items():
        lists = [() if each is None else each for each in rows[name]]
        if name not in _WHOLE_LISTS:
            lists = [each[: sizes.listed] for each in lists]
        packed = pack_lists(name, lists, np.int64 if whole else np.float32)
        packed[name] = smallest(packed[name]) if whole else rounded(packed[name], _LIST_BITS)
        arrays |= packed
    return arrays


def _shown(hits: pd.DataFrame, sizes: PageSizes) -> pd.DataFrame:
    """Return the hits that the pages show, in their order: top contexts, then samples of the highest bin first."""
    sampled = hits["group"] != TOP
    bins = hits["bin"].where(sampled).groupby(hits["latent"]).transform("nunique").to_numpy(int)
    per_bin = np.clip(sizes.samples // np.maximum(bins, 1), 1, sizes.per_bin)
    ordered = hits.assign(sampled=sampled, order=np.where(sampled, -hits["bin"].astype(int), 0))
    shown = ordered.loc[hits["rank"] < np.where(sampled, per_bin, sizes.top)]
    return shown.sort_values(["latent", "sampled", "order", "rank"], kind="stable")


def _hits(hits: pd.DataFrame, first: int, latents: int) -> dict[str, np.ndarray]:
    own = hits["latent"].to_numpy() - first
    sampled = hits["sampled"].to_numpy(bool)
    return {
        "tops": np.bincount(own[~sampled], minlength=latents).astype(np.uint16),
        "samples": np.bincount(own[sampled], minlength=latents).astype(np.uint16),
        "bin": smallest(hits["bin"].to_numpy()),
        "value": hits["value"].to_numpy(np.float32),
    }


def _tokens_by_count(store: LatentStore) -> Int[np.ndarray, " tokens"]:
    """Return the ids of all tokens of the store, the commonest first: their places are small numbers."""
    counts = np.bincount(np.asarray(store.tokens).ravel(), minlength=max(store.strings, default=-1) + 1)
    named = np.zeros(len(counts), bool)
    named[list(store.strings)] = True
    order = np.argsort(-counts, kind="stable")
    return order[(counts > 0)[order] | named[order]]


def _texts(
    hits: pd.DataFrame, store: LatentStore, numbers: Int[np.ndarray, " vocabulary"], sizes: PageSizes
) -> dict[str, np.ndarray]:
    """Return the windows of hits: text that several windows share is held once, in the order of the contexts."""
    context, position = (hits[name].to_numpy(np.int64) for name in ("context", "position"))
    begin = hits["begin"].to_numpy(np.int64)
    codes = list(hits["values"])
    read = np.array([len(each) for each in codes], np.int64)
    reach = np.where(hits["sampled"], sizes.sample_window, sizes.top_window)
    low, high = np.maximum(begin, position - reach), np.minimum(begin + read, position + reach + 1)
    lengths = high - low
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    window = np.concatenate(codes) if len(codes) else np.empty(0, np.float32)
    window = window[np.repeat(np.cumsum(read) - read + low - begin, lengths) + within]
    width = store.meta.context
    places = np.unique(np.repeat(context * width + low, lengths) + within)
    # A run is a stretch of one context.
    breaks = np.flatnonzero((np.diff(places, prepend=-2) != 1) | (places % width == 0))
    # The code at the peak is the hit's value.
    on = (window != 0) & (within != np.repeat(position - low, lengths))
    return {
        "tokens": in_few_bytes(numbers[store.tokens[places // width, places % width]]),
        "run_first": smallest(np.diff(breaks, prepend=0)),
        "run_context": smallest(np.diff(places[breaks] // width, prepend=0)),
        "run_position": smallest(places[breaks] % width),
        "first": smallest(np.searchsorted(places, context * width + low)),
        "length": smallest(lengths),
        "peak": smallest(position - low),
        "codes": smallest(np.bincount(np.repeat(np.arange(len(hits)), lengths)[on], minlength=len(hits))),
        "code_place": smallest(within[on]),
        "code": window[on].astype(np.float32),
    }


def _samples(hits: pd.DataFrame, store: LatentStore) -> dict[str, np.ndarray]:
    """Return the samples of hits, each once."""
    ids, local = np.unique(hits["context"].to_numpy(), return_inverse=True)
    vectors = np.stack([store.samples[each] for each in ids.tolist()]) if len(ids) else np.empty((0, 1), np.float32)
    return {"sample_ids": ids.astype(np.uint32), "sample": smallest(local)} | _in_steps(vectors)


def _top_samples(store: LatentStore, tops: Int[np.ndarray, " d_sae"]) -> dict[str, np.ndarray]:
    """Return the sample with the largest code of every latent, unless the table would load too much, and the scale on
    which samples are shown."""
    if not store.samples:
        return {}
    values = np.stack(list(store.samples.values()))
    # Pictures and curves share one scale, on which a few extreme values do not count.
    scale = {"scale": np.quantile(values, [0.001, 0.999]).astype(np.float32)}
    if len(tops) * values.shape[1] > _MOST_IN_TABLE:
        return scale
    nothing = np.full(values.shape[1], np.nan, np.float32)
    vectors = np.stack([store.samples[top] if top >= 0 else nothing for top in tops.tolist()])
    return scale | _in_steps(vectors)


def _in_steps(vectors: Float[np.ndarray, "samples d_in"]) -> dict[str, np.ndarray]:
    """Return vectors in 255 steps, each between its least and its greatest value; NaN is the least one."""
    if not len(vectors):
        return {name: np.empty(0, np.float32) for name in ("low", "high")} | {"steps": np.empty(0, np.uint8)}
    low, high = vectors.min(1, keepdims=True), vectors.max(1, keepdims=True)
    shares = (vectors - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    steps = np.rint(np.nan_to_num(shares) * 255).astype(np.uint8)
    return {"low": low[:, 0].astype(np.float32), "high": high[:, 0].astype(np.float32), "steps": steps.ravel()}

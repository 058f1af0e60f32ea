"""Made-up latent stores: of text at any size, of pictures and of curves, with gaps, dead latents and markup."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from fsae.outputs.explanations import EXPLANATIONS, Explanation, Scores, explanation_line, explanations_folder
from fsae.outputs.latent_scaling import LATENT_SCALING
from fsae.outputs.latent_store import SAMPLED, TOP, LatentStore, Meta, latent_rows, write_latent_store

BINS = 96
EDGES = [2.0 ** (number / 2 - 32) for number in range(BINS + 1)]
WINDOW = 24
LATENTS_AT_ONCE = 8192
# Texts of the first tokens: whatever could end an element, a string, a line or the direction of writing.
HOSTILE = [
    "</script><script>document.title='owned'</script>", "<img src=x onerror=\"document.title='owned'\">", "\n", "\t",
    " ", "", "\u202eevil", "&amp;", '"', "'", "\\", "`${1}`", "]]>", "<!--", "\u2028", "\r\n", "日本", "é", "🦊",
    "\x00",
]  # fmt: skip
CLASSES = ["dense", "single-token", "n-gram", "output-like", "other"]
LABEL = '<b>bold</b> "quoted" \u202e & label\nin two lines'


def write_text_store(
    folder: Path,
    d_sae: int = 300,
    contexts: int = 400,
    vocabulary: int = 2000,
    seed: int = 0,
    weights: str = "0123abcd",
    of_parts: list[str] | None = None,
) -> LatentStore:
    """Write a store of text; every tenth latent is dead, and latent 1 has a hostile label.

    With names of parts it is of a crosscoder: latent i writes the first part with the relative norm i / d_sae.
    """
    random = np.random.default_rng(seed)
    context = 128
    # With 50,000 tokens the entropy is 9.9 bits; English text in tokens of GPT-2's size has about 9.7.
    shares = 1 / (np.arange(vocabulary) + 3) ** 1.15
    tokens = random.choice(vocabulary, (contexts, context), p=shares / shares.sum()).astype(np.int32)
    syllables = np.array(["ka", "ro", "mi", "ten", "sol", "ar", "li", "ven", "dor", "ish"])
    words = [
        (" " if random.random() < 0.7 else "") + "".join(random.choice(syllables, 1 + i % 3)) for i in range(vocabulary)
    ]
    strings = dict(enumerate(HOSTILE + words[len(HOSTILE) :]))
    dead = np.arange(d_sae) % 10 == 7
    alive = np.flatnonzero(~dead)
    maximum = np.where(dead, 0, np.exp(random.normal(1, 0.7, d_sae))).astype(np.float32)
    parts = np.array_split(alive, len(alive) // LATENTS_AT_ONCE + 1)
    hits = pd.concat([_hits(random, part, maximum, tokens) for part in parts], ignore_index=True)
    table = _table(random, d_sae, dead, maximum, vocabulary, tokens, strings)
    if of_parts is not None:
        shares = np.arange(d_sae, dtype=np.float32) / d_sae
        table["relative_norms"] = list(np.stack([shares, *[1 - shares] * (len(of_parts) - 1)], axis=1))
    meta = _meta(
        kind="text", d_sae=d_sae, weights=weights, parts=of_parts, contexts=contexts, context=context, window=WINDOW,
        excluded={"first position": contexts, "massive": 3}, positions=contexts * 127, seed=seed, model="tiny/model",
        site="resid_post.3", dataset="a <i>data</i> set", part="held out", dtype="float32",
    )  # fmt: skip
    write_latent_store(folder, latent_rows(table), [hits], meta, tokens=tokens, strings=strings)
    return LatentStore(folder)


def write_samples_store(folder: Path, picture: bool = True, d_sae: int = 40, samples: int = 60) -> LatentStore:
    """Write a store of pictures of 8 x 6 pixels, or of curves of 48 numbers."""
    random = np.random.default_rng(1)
    vectors = random.normal(0, 1, (samples, 48)).astype(np.float32)
    vectors[:, 20:30] += 3
    maximum = np.exp(random.normal(1, 0.5, d_sae)).astype(np.float32)
    dead = np.arange(d_sae) % 10 == 7
    alive = np.flatnonzero(~dead)
    latent = np.repeat(alive, 12)
    rank = np.tile(np.r_[:6, :3, :3], len(alive))
    value = maximum[latent] * np.tile(np.r_[np.linspace(1, 0.8, 6), [0.6] * 3, [0.3] * 3], len(alive)).astype(
        np.float32
    )
    hits = pd.DataFrame(
        {
            "latent": latent, "group": np.tile([TOP] * 6 + [SAMPLED] * 6, len(alive)), "bin": _bin_of(value),
            "rank": rank,
            "context": random.integers(0, samples, len(latent)), "position": 0, "value": value, "begin": 0,
            "values": [[each] for each in value],
        }
    )  # fmt: skip
    table = _table(random, d_sae, dead, maximum, 0, None, {})
    shown = np.unique(hits["context"])
    meta = _meta(
        kind="samples", d_sae=d_sae, weights="samples1", contexts=samples, context=1, window=0, excluded={},
        positions=samples, seed=1, dataset="mnist", picture=[8, 6] if picture else None,
    )  # fmt: skip
    write_latent_store(folder, latent_rows(table), [hits], meta, sample_ids=shown, samples=vectors[shown])
    return LatentStore(folder)


def explain(store: LatentStore, *latents: int, weights: str | None = None) -> None:
    """Let a language model have explained latents of a store."""
    folder = explanations_folder(store.folder)
    folder.mkdir(exist_ok=True)
    score = Scores(balanced_accuracy=0.75, precision=1, recall=0.5, f1=0.7, positives=2, negatives=2, unreadable=0)
    found = [
        Explanation(
            latent=each,
            explanation=f"on at <b>{each}</b>",
            model="<i>judge</i>",
            prompts="",
            settings="",
            weights=weights or store.meta.weights,
            detection=score,
        )
        for each in latents
    ]
    (folder / EXPLANATIONS).write_text("".join(f"{explanation_line(each)}\n" for each in found))


def scale(store: LatentStore) -> None:
    """Let the evaluation `crosscoder` have measured a store of parts: latents with even numbers are of the first alone.

    Latent 3 was never on.
    """
    numbers, parts = range(store.meta.d_sae), store.meta.parts or []
    live = [latent != 3 for latent in numbers]
    table: dict[str, list] = {"part": [parts[latent % 2] for latent in numbers], "live": live}
    columns = ["nu_error", "nu_reconstruction"]
    columns += [f"{name} {part}" for name in ("beta_error", "beta_reconstruction") for part in parts]
    for place, name in enumerate(columns):
        table[name] = [place + latent / 100 if on else None for latent, on in zip(numbers, live, strict=True)]
    table["specific"] = [latent % 2 == 0 for latent in numbers]
    (store.folder.parent / LATENT_SCALING).write_text(json.dumps([table]))


def _meta(**facts: object) -> Meta:
    aggregates = {"alive_share": 0.9, "mean_token_purity": 0.61, "ngram_f1_median": 0.34, "missing": None}
    control = {"alive_share": 1.0, "mean_token_purity": 0.12, "ngram_f1_median": 0.05, "missing": None}
    meanings = {"mean_token_purity": "mean share of <b>the top codes</b>"}
    shared = {"architecture": "topk", "top": 24, "per_bin": 4, "bin_edges": EDGES, "fsae": "0.2.0"}
    return Meta(**shared, aggregates=aggregates, meanings=meanings, control=control, control_latents=256, **facts)  # type: ignore[arg-type]


def _bin_of(values: np.ndarray) -> np.ndarray:
    return np.searchsorted(EDGES, np.abs(values), side="right").astype(np.int16) - 1


def _hits(random: np.random.Generator, alive: np.ndarray, maximum: np.ndarray, tokens: np.ndarray) -> pd.DataFrame:
    """Return 24 top contexts and 4 samples of each of 12 bins per alive latent, with their windows."""
    top, per_bin, bins = 24, 4, 12
    rows = top + per_bin * bins
    latent = np.repeat(alive, rows)
    share = np.r_[np.sort(random.uniform(0.7, 1, top))[::-1], np.repeat(2.0 ** -(np.arange(bins) / 2), per_bin) * 0.9]
    share[0] = 1
    value = (maximum[latent] * np.tile(share, len(alive))).astype(np.float32)
    count = len(latent)
    context = random.integers(0, len(tokens), count)
    position = random.integers(1, tokens.shape[1], count)
    begin = np.maximum(position - WINDOW, 0)
    lengths = np.minimum(position + WINDOW + 1, tokens.shape[1]) - begin
    ends = np.cumsum(lengths)
    codes = random.random(int(ends[-1]), dtype=np.float32)
    codes *= np.where(random.random(len(codes), dtype=np.float32) < 0.07, np.repeat(value, lengths) * 0.9, 0)
    codes[ends - lengths] = np.nan
    codes[ends - lengths + position - begin] = value
    windows = pa.ListArray.from_arrays(np.r_[0, ends].astype(np.int32), pa.array(codes, mask=np.isnan(codes)))
    return pd.DataFrame(
        {
            "latent": latent.astype(np.int32),
            "group": np.tile([TOP] * top + [SAMPLED] * (rows - top), len(alive)),
            "bin": _bin_of(value),
            "rank": np.tile(np.r_[:top, np.tile(np.arange(per_bin), bins)], len(alive)).astype(np.int16),
            "context": context.astype(np.int32),
            "position": position.astype(np.int32),
            "value": value,
            "begin": begin.astype(np.int32),
            "values": pd.arrays.ArrowExtensionArray(windows),  # type: ignore[attr-defined]
        }
    )


def _table(
    random: np.random.Generator,
    d_sae: int,
    dead: np.ndarray,
    maximum: np.ndarray,
    vocabulary: int,
    tokens: np.ndarray | None,
    strings: dict[int, str],
) -> pd.DataFrame:
    density = np.where(dead, 0, 10 ** random.uniform(-4, -0.5, d_sae))
    counts = np.round(density * 1e6).astype(np.int64)
    highest = np.maximum(_bin_of(np.maximum(maximum, 1e-9)).astype(int), 12)
    histogram = np.zeros((d_sae, BINS), np.int64)
    for below in range(12):
        histogram[np.arange(d_sae), highest - below] = np.where(dead, 0, random.integers(0, 3000, d_sae))

    def numbers(mean: float, spread: float) -> np.ndarray:
        return np.where(dead, np.nan, random.normal(mean, spread, d_sae)).astype(np.float32)

    def lists(length: int, high: int) -> list[np.ndarray | None]:
        drawn = random.integers(0, max(high, 1), (d_sae, length)).astype(np.int32)
        return [None if off else row for off, row in zip(dead, drawn, strict=True)]

    def falling(length: int, high: float) -> list[np.ndarray | None]:
        drawn = -np.sort(-random.random((d_sae, length)) * high).astype(np.float32)
        return [None if off else row for off, row in zip(dead, drawn, strict=True)]

    table = pd.DataFrame(
        {
            "latent": np.arange(d_sae, dtype=np.int32), "count": counts, "density": density, "max": maximum,
            "mean": numbers(1, 0.2), "std": numbers(0.5, 0.1), "histogram": list(histogram),
            "class": np.where(dead, "dead", random.choice(CLASSES, d_sae)),
            "label": [None if off else f"word {i % 97} of {i % 13}" for i, off in enumerate(dead)],
            "decoder_norm": numbers(1, 0.1), "encoder_decoder_cosine": numbers(0.8, 0.1),
            "decoder_neighbours": lists(10, d_sae), "decoder_cosines": falling(10, 1),
            "encoder_neighbours": lists(10, d_sae), "encoder_cosines": falling(10, 1),
            "cofiring": lists(10, d_sae), "cofiring_lift": falling(10, 90), "cofiring_share": falling(10, 1),
            "cofiring_error": falling(10, 0.1), "cofiring_jaccard": falling(10, 0.3),
        }
    )  # fmt: skip
    table.loc[1, "label"] = LABEL
    if tokens is None:
        return table
    names = ["token_purity", "token_entropy", "next_token_purity", "previous_token_purity", "ngram_correlation"]
    names += ["ngram_f1", "logit_std", "logit_skew", "logit_kurtosis", "input_score"]
    more: dict[str, object] = {name: numbers(0.5, 0.15) for name in names}
    more["ngram_order"] = np.where(dead, np.nan, random.integers(0, 3, d_sae))
    more["top_tokens"], more["top_token_counts"] = lists(8, vocabulary), lists(8, 20)
    for name in ("logit_top", "logit_bottom", "raw_logit_top", "raw_logit_bottom"):
        more[name], more[f"{name}_values"] = lists(10, vocabulary), falling(10, 4)
    more["trigger"] = [None if off or i % 3 else np.array([5 + i % 7, 30, 31]) for i, off in enumerate(dead)]
    # The hostile texts belong to latent 1.
    more["top_tokens"][1] = np.arange(8)  # type: ignore[index]
    more["logit_top"][1] = np.arange(10)  # type: ignore[index]
    more["logit_bottom"][1] = np.arange(10, 20)  # type: ignore[index]
    return table.assign(**more)

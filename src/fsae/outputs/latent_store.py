"""The latent store: what a pass over data found about every latent of one dictionary, in Parquet and JSON.

latents.parquet   one row per latent, in their order; `LATENT_COLUMNS`
hits.parquet      top contexts and samples of every latent, ordered by latent; `HIT_COLUMNS`
tokens.npy        (contexts, context) token ids of all text that was read; only for a language model's activations
strings.json      token id to the text that it stands for, of every id that the store names
samples.npz       `ids` and `vectors` of the samples that hits name; only for vectors of other sources
meta.json         the version, the data, the counts and the sizes; `Meta`

A store is replaced as a whole when it is made again. Pages that a command adds, of prompts and of comparisons, are
therefore next to it (`views_folder`).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from fsae.files import replacing

VERSION = 1
LATENTS, HITS, TOKENS, STRINGS, SAMPLES, META = (
    "latents.parquet",
    "hits.parquet",
    "tokens.npy",
    "strings.json",
    "samples.npz",
    "meta.json",
)
# Rows per row group: one latent is read without reading the others.
_LATENTS_PER_GROUP = 1024
_HITS_PER_GROUP = 2048
# The group of the top contexts in hits.parquet; other groups are activation bins.
TOP = "top"
SAMPLED = "sample"


def views_folder(latents: Path) -> Path:
    """Return the folder of the pages of prompts and comparisons that belong to the latent store in `latents`."""
    return latents.with_name(f"{latents.name}.views")


@dataclass(frozen=True)
class Column:
    """Column of a table: its type and its meaning."""

    type: pa.DataType
    meaning: str


_INTS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())

LATENT_COLUMNS = {
    "latent": Column(pa.int32(), "index of the latent"),
    "count": Column(pa.int64(), "samples on which it is on"),
    "density": Column(pa.float64(), "count / samples that counted"),
    "max": Column(pa.float32(), "code of the largest absolute value, with its sign, in the dictionary's unit"),
    "mean": Column(pa.float64(), "mean code over the samples on which it is on"),
    "std": Column(pa.float64(), "standard deviation of the code over the samples on which it is on"),
    "histogram": Column(
        pa.list_(pa.int64()), "samples per activation bin of the absolute code; `meta.bin_edges` are the bins' limits"
    ),
    "class": Column(
        pa.string(),
        "the first that fits: dead (on for no sample), dense (density above 0.1), single-token (token purity of 0.9 or "
        "more, and the token alone predicts the codes), n-gram (F1 of 0.7 or more), output-like (heavy-tailed effects "
        "on logits, on other tokens than its own), other",
    ),
    "label": Column(pa.string(), "a few words made of the facts below"),
    "token_purity": Column(pa.float32(), "share of the top contexts' activation on their commonest peak token"),
    "token_entropy": Column(pa.float32(), "entropy of the peak tokens of the top contexts, in bits"),
    "next_token_purity": Column(pa.float32(), "token_purity of the token after the peak"),
    "previous_token_purity": Column(pa.float32(), "token_purity of the token before the peak"),
    "top_tokens": Column(_INTS, "peak tokens of the top contexts, the commonest first"),
    "top_token_counts": Column(_INTS, "top contexts with each of these peak tokens"),
    "ngram_correlation": Column(pa.float32(), "correlation of the n-gram predictor with codes of held-out windows"),
    "ngram_f1": Column(pa.float32(), "F1 of the n-gram predictor at half of the latent's maximum, on held-out windows"),
    "ngram_order": Column(pa.int32(), "previous tokens that the best predictor reads: 0, 1 or 2"),
    "logit_top": Column(_INTS, "tokens whose logits the decoder row raises most, through the final norm"),
    "logit_top_values": Column(_FLOATS, "effect on these logits per unit length of the decoder row"),
    "logit_bottom": Column(_INTS, "tokens whose logits it lowers most, through the final norm"),
    "logit_bottom_values": Column(_FLOATS, "effect on these logits"),
    "raw_logit_top": Column(_INTS, "tokens whose logits it raises most, without the final norm"),
    "raw_logit_top_values": Column(_FLOATS, "effect on these logits"),
    "raw_logit_bottom": Column(_INTS, "tokens whose logits it lowers most, without the final norm"),
    "raw_logit_bottom_values": Column(_FLOATS, "effect on these logits"),
    "logit_std": Column(pa.float32(), "standard deviation of the logit effects over the vocabulary"),
    "logit_skew": Column(pa.float32(), "skewness of the logit effects"),
    "logit_kurtosis": Column(pa.float32(), "kurtosis of the logit effects; 3 for a normal distribution"),
    "input_score": Column(pa.float32(), "share of the top contexts whose peak token is among its 20 top logits"),
    "trigger": Column(_INTS, "shortest text, as tokens, that gives half of the top activation; null if not measured"),
    "decoder_neighbours": Column(_INTS, "latents with the most similar decoder rows"),
    "decoder_cosines": Column(_FLOATS, "cosines of these rows"),
    "encoder_neighbours": Column(_INTS, "latents with the most similar encoder columns"),
    "encoder_cosines": Column(_FLOATS, "cosines of these columns"),
    "cofiring": Column(_INTS, "latents that are on together with it more often than by chance, by lift"),
    "cofiring_lift": Column(_FLOATS, "P(other on | this on) / P(other on)"),
    "cofiring_share": Column(_FLOATS, "P(other on | this on), from a sample of this latent's activations"),
    "cofiring_error": Column(_FLOATS, "standard error of that share"),
    "cofiring_jaccard": Column(_FLOATS, "samples with both on / samples with either on"),
    "decoder_norm": Column(pa.float32(), "length of the decoder row"),
    "encoder_decoder_cosine": Column(pa.float32(), "cosine of encoder column and decoder row"),
    "relative_norms": Column(
        _FLOATS,
        "of each part of a crosscoder's decoder row, (1 + (own norm - longest other) / longest) / 2, in units of the "
        "vectors' spread at each part: 1 if it writes this part alone, 0.5 if another part has the same norm; null for "
        "other dictionaries",
    ),
}

HIT_COLUMNS = {
    "latent": Column(pa.int32(), "index of the latent"),
    "group": Column(pa.string(), f'"{TOP}" for a top context, "{SAMPLED}" for a sample of an activation bin'),
    "bin": Column(pa.int16(), "activation bin of `value`"),
    "rank": Column(pa.int16(), "place within its group (and bin), from 0"),
    "context": Column(pa.int32(), "row of tokens.npy, or number of the sample"),
    "position": Column(pa.int32(), "position of the peak in its row"),
    "value": Column(pa.float32(), "the latent's code at the peak, the largest of this context"),
    "begin": Column(pa.int32(), "position in the row of the first of `values`"),
    "values": Column(
        _FLOATS, "codes at the positions of the window, within the document; null at positions that did not count"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Meta:
    """Facts about a latent store.

    Attributes:
        kind: "text" or "samples".
        d_sae: latents.
        architecture: of the dictionary.
        weights: digest of the dictionary's tensors.
        positions: samples that counted.
        excluded: positions that did not, by reason.
        contexts: rows of text, or samples.
        context: tokens per row; 1 for samples.
        window: positions on either side of a peak.
        top: top contexts per latent.
        per_bin: samples per latent and activation bin.
        bin_edges: limits of the activation bins, ascending: bin i is [edge i, edge i + 1).
        seed: of the sampling.
        unit: the unit of codes.
        model, site, dataset, part: the origin of the vectors; null without a language model.
        picture: height and width, if samples are pictures.
        parts: names of the parts that `relative_norms` are of; null if there are no such norms.
        dtype: type in which the vectors were made.
        version: of the store's format.
        fsae: version of the program.
        aggregates: numbers of the dictionary as a whole.
        meanings: what these numbers mean.
        control: the same numbers of random directions of equal density.
        control_latents: how many random directions.
    """

    kind: str
    d_sae: int
    architecture: str
    weights: str
    positions: int
    excluded: dict[str, int]
    contexts: int
    context: int
    window: int
    top: int
    per_bin: int
    bin_edges: list[float]
    seed: int
    unit: str = "of the exported dictionary: a code times its decoder row is in raw units of the activations"
    model: str | None = None
    site: str | None = None
    dataset: str | None = None
    part: str | None = None
    picture: list[int] | None = None
    parts: list[str] | None = None
    dtype: str | None = None
    version: int = VERSION
    fsae: str = ""
    aggregates: dict[str, float | None] = field(default_factory=dict)
    meanings: dict[str, str] = field(default_factory=dict)
    control: dict[str, float | None] = field(default_factory=dict)
    control_latents: int = 0


def write_latent_store(
    folder: Path,
    latents: pa.Table,
    hits: Iterable[pd.DataFrame],
    meta: Meta,
    *,
    tokens: Int[np.ndarray, "contexts context"] | None = None,
    strings: Mapping[int, str] | None = None,
    sample_ids: Int[np.ndarray, " samples"] | None = None,
    samples: Float[np.ndarray, "samples d_in"] | None = None,
) -> None:
    """Replace a latent store.

    Args:
        folder: of the store.
        latents: all of them, from `latent_rows`.
        hits: tables of some latents after the others, in their order; columns that a table lacks are null.
        meta: facts about the store.
        tokens: all text that was read.
        strings: the text of each token id.
        sample_ids: without text, the samples that hits name, ascending.
        samples: these samples.

    Raises:
        OSError: no space is left; an earlier store is untouched.
    """
    with replacing(folder) as unfinished:
        unfinished.mkdir(parents=True)
        pq.write_table(latents, unfinished / LATENTS, row_group_size=_LATENTS_PER_GROUP, compression="zstd")
        _write_hits(unfinished / HITS, hits)
        if tokens is not None:
            np.save(unfinished / TOKENS, tokens)
            text = {str(token): string for token, string in (strings or {}).items()}
            (unfinished / STRINGS).write_text(json.dumps(text, ensure_ascii=False) + "\n", encoding="utf-8")
        if samples is not None:
            np.savez(unfinished / SAMPLES, ids=np.asarray(sample_ids), vectors=samples)
        (unfinished / META).write_text(json.dumps(asdict(meta), indent=2) + "\n", encoding="utf-8")


def latent_rows(table: pd.DataFrame) -> pa.Table:
    """Return a table of latents as the store holds it; columns that it lacks are null."""
    return _arrow(table, LATENT_COLUMNS)


def _arrow(table: pd.DataFrame, columns: Mapping[str, Column]) -> pa.Table:
    missing = {name: None for name in columns if name not in table}
    ordered = table.assign(**missing)[list(columns)]
    return pa.Table.from_pandas(ordered, schema=_schema(columns), preserve_index=False).replace_schema_metadata()


def _schema(columns: Mapping[str, Column]) -> pa.Schema:
    return pa.schema([pa.field(name, column.type) for name, column in columns.items()])


def _write_hits(path: Path, tables: Iterable[pd.DataFrame]) -> None:
    schema = _schema(HIT_COLUMNS)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        waiting = schema.empty_table()
        for table in tables:
            waiting = pa.concat_tables([waiting, _arrow(table, HIT_COLUMNS)])
            # Row groups do not depend on the tables.
            whole = len(waiting) // _HITS_PER_GROUP * _HITS_PER_GROUP
            if whole:
                writer.write_table(waiting.slice(0, whole), row_group_size=_HITS_PER_GROUP)
                waiting = waiting.slice(whole)
        writer.write_table(waiting, row_group_size=_HITS_PER_GROUP)


class LatentStore:
    """A latent store on disk.

    Args:
        folder: that `write_latent_store` wrote.

    Raises:
        ValueError: there is no store, it is damaged, or another version of fsae wrote it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / META
        if not path.is_file():
            raise ValueError(f"{folder}: no latent store; make it with python -m fsae.latents RUN")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(META, error) from error
        if version != VERSION:
            raise ValueError(
                f"{folder}: a latent store of version {version}, and this fsae reads version {VERSION}; make it again "
                "with python -m fsae.latents RUN"
            )
        known = {each.name for each in fields(Meta)}
        try:
            self.meta = Meta(**{name: value for name, value in content.items() if name in known})
        except TypeError as error:
            raise self._damaged(META, error) from error

    @cached_property
    def table(self) -> pd.DataFrame:
        """All latents, one row each, in their order; `LATENT_COLUMNS` says what the columns mean."""
        return self._read(LATENTS)

    def hits(self, latent: int | None = None) -> pd.DataFrame:
        """Return the hits of one latent, or of all; `HIT_COLUMNS` says what the columns mean.

        Raises:
            ValueError: there is no such latent.
        """
        if latent is None:
            return self._read(HITS)
        if not 0 <= latent < self.meta.d_sae:
            raise ValueError(f"latent {latent}: the dictionary has the latents 0 to {self.meta.d_sae - 1}")
        return self._read(HITS, [("latent", "==", latent)])

    def hits_between(self, first: int, end: int) -> pd.DataFrame:
        """Return the hits of the latents from `first` to `end` - 1."""
        return self._read(HITS, [("latent", ">=", first), ("latent", "<", end)])

    @cached_property
    def tokens(self) -> Int[np.ndarray, "contexts context"]:
        """The token ids of all text that was read; empty without text."""
        if self.meta.kind != "text":
            return np.empty((0, 1), np.int32)
        try:
            return np.load(self.folder / TOKENS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise self._damaged(TOKENS, error) from error

    @cached_property
    def strings(self) -> dict[int, str]:
        """The text that each token id stands for."""
        if self.meta.kind != "text":
            return {}
        try:
            content = json.loads((self.folder / STRINGS).read_text(encoding="utf-8"))
            return {int(token): text for token, text in content.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise self._damaged(STRINGS, error) from error

    @cached_property
    def samples(self) -> dict[int, Float[np.ndarray, " d_in"]]:
        """The vectors of the samples that hits name; empty for text."""
        if self.meta.kind != "samples":
            return {}
        try:
            with np.load(self.folder / SAMPLES, allow_pickle=False) as file:
                return dict(zip(file["ids"].tolist(), file["vectors"], strict=True))
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(SAMPLES, error) from error

    def _read(self, name: str, filters: list[tuple[str, str, Any]] | None = None) -> pd.DataFrame:
        try:
            return pq.read_table(self.folder / name, filters=filters).to_pandas(ignore_metadata=True)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> ValueError:
        return ValueError(
            f"{self.folder / name} is damaged or missing ({' '.join(str(error).split())[:200]}); make the latent store "
            "again with python -m fsae.latents RUN"
        )

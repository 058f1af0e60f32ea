"""Findings: everything that is known of a dictionary's latents after a pass, as the latent store holds it."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from jaxtyping import Int

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.latents.contexts import Contexts, SampleContexts, TextContexts
from fsae.latents.labels import MEANINGS, aggregated, aggregates, classes, labels, text_columns
from fsae.latents.survey import Survey
from fsae.latents.tables import cofiring_columns, hit_table, tally_columns
from fsae.latents.triggers import shortest_triggers
from fsae.latents.weights import logit_columns, part_columns, weight_columns
from fsae.outputs.latent_store import LATENT_COLUMNS, TOP, Meta, latent_rows, write_latent_store

log = logging.getLogger(__name__)

# Lists of tokens of which the store holds the text.
_TOKEN_LISTS = ("top_tokens", "logit_top", "logit_bottom", "raw_logit_top", "raw_logit_bottom")
# Latents whose hits are in a table at a time.
_LATENTS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class LatentFindings:
    """LatentFindings on the latents of one dictionary.

    Attributes:
        latents: a row per latent; see `LATENT_COLUMNS`.
        hits: yields the top contexts and samples of some latents after the others; see `HIT_COLUMNS`.
        numbers: of the dictionary as a whole.
        strings: the text of every token id that occurs in the data or in the tables; empty without text.
        samples: that counted.
        left_out: positions that were left out for their norm.
    """

    latents: pa.Table
    hits: Callable[[], Iterator[pd.DataFrame]]
    numbers: dict[str, float]
    strings: dict[int, str]
    samples: int
    left_out: int


def findings(
    contexts: Contexts,
    autoencoder: Autoencoder,
    surveys: Callable[[], Iterator[Survey]],
    count: Int[np.ndarray, " d_sae"],
    partners: int,
    triggers: int = 0,
    heartbeat: Callable[[], None] = lambda: None,
    latents_at_once: int = _LATENTS_AT_ONCE,
    spreads: Sequence[float] | None = None,
) -> LatentFindings:
    """Return the findings on a dictionary whose surveys are complete.

    Args:
        contexts: the data that were surveyed.
        autoencoder: the dictionary.
        surveys: yields the surveys of its latents, of some of them after the others.
        count: samples on which each latent is on.
        partners: latents that co-fire with each latent, at most.
        triggers: latents whose shortest trigger is searched for: of those that are on, evenly spaced ones.
        heartbeat: called between forward passes; may raise to stop.
        latents_at_once: latents whose hits are in a table at a time.
        spreads: root mean square distance from their mean of the vectors of each part that the dictionary writes; None
            to leave out the norms of decoder rows at parts.
    """
    of_weights, input_tokens = _of_weights(contexts, autoencoder, spreads)
    alive = count.nonzero()[0]
    chosen = alive[np.unique(np.linspace(0, len(alive) - 1, min(triggers, len(alive))).round().astype(int))]
    text = contexts if isinstance(contexts, TextContexts) else None
    strings: dict[int, str] = {}
    rows, numbers, peaks, samples, left_out = [], [], [], 0, 0
    for survey in surveys():
        samples, left_out = survey.tally.samples, survey.left_out
        columns = tally_columns(survey)
        columns |= cofiring_columns(survey.cofiring.partners(count / max(1, samples), count, partners))
        for first, end in _ranges(len(survey.latents), latents_at_once):
            hits = hit_table(survey, first, end)
            begin = survey.latents.start + first
            table = pd.DataFrame({name: values[first:end] for name, values in columns.items()})
            table = table.join(of_weights.slice(begin, len(table)).to_pandas())
            if text is not None:
                is_peak = (hits["group"] == TOP) & (hits["rank"] == 0) & hits["latent"].isin(chosen.tolist())
                peaks.append(hits.loc[is_peak].drop(columns="values"))
                own_inputs = None if input_tokens is None else input_tokens[begin : begin + len(table)]
                table = _with_text(table, hits.assign(latent=hits["latent"] - begin), text, own_inputs, strings)
            else:
                table["class"] = classes(table)
            numbers.append(aggregated(table))
            rows.append(latent_rows(table))
        # Before the next one takes its memory.
        del survey
    latents = pa.concat_tables(rows)
    if text is not None:
        own = _triggers(text, autoencoder, pd.concat(peaks), chosen.tolist(), heartbeat)
        name = "trigger"
        column = pa.array([own.get(latent) for latent in range(autoencoder.d_sae)], LATENT_COLUMNS[name].type)
        latents = latents.set_column(latents.column_names.index(name), name, column)
    hits_again = partial(_hits, surveys, latents_at_once)
    strings = dict(sorted(strings.items()))
    return LatentFindings(latents, hits_again, aggregates(pd.concat(numbers)), strings, samples, left_out)


def _ranges(count: int, at_once: int) -> Iterator[tuple[int, int]]:
    for first in range(0, count, at_once):
        yield first, min(first + at_once, count)


def _hits(surveys: Callable[[], Iterator[Survey]], latents_at_once: int) -> Iterator[pd.DataFrame]:
    for survey in surveys():
        for first, end in _ranges(len(survey.latents), latents_at_once):
            yield hit_table(survey, first, end)
        # Before the next one takes its memory.
        del survey


def _of_weights(
    contexts: Contexts, autoencoder: Autoencoder, spreads: Sequence[float] | None
) -> tuple[pa.Table, Int[np.ndarray, "d_sae top"] | None]:
    """Return the columns that follow from the weights, and the top tokens if there are effects on logits."""
    columns, input_tokens = weight_columns(autoencoder.W_enc, autoencoder.W_dec), None
    if spreads is not None:
        columns |= part_columns(autoencoder.W_dec, autoencoder.ends.target, spreads)
    if isinstance(contexts, TextContexts) and (effects := _logit_columns(contexts, autoencoder)) is not None:
        columns |= effects[0]
        input_tokens = effects[1]
    return latent_rows(pd.DataFrame(columns)).select(list(columns)), input_tokens


def _with_text(
    table: pd.DataFrame,
    hits: pd.DataFrame,
    text: TextContexts,
    input_tokens: Int[np.ndarray, "latents top"] | None,
    strings: dict[int, str],
) -> pd.DataFrame:
    """Return a table of some latents with the columns about text.

    Args:
        table: of the latents.
        hits: of them; `latent` is counted from the first of them.
        text: that was surveyed.
        input_tokens: their top tokens.
        strings: the texts of tokens; those of new tokens are added.
    """
    tokens = text.rows.tokens.numpy()
    table = table.assign(**text_columns(hits, tokens, len(table), input_tokens))
    table["class"] = classes(table)
    lists = [each for name in _TOKEN_LISTS if name in table for each in table[name] if each is not None]
    _add_strings(strings, text, lists if strings else [tokens.ravel(), *lists])
    table["label"] = labels(table, hits, tokens, strings)
    return table


def _add_strings(strings: dict[int, str], text: TextContexts, lists: Iterable[np.ndarray]) -> None:
    known = np.fromiter(strings, np.int64, len(strings))
    new = np.setdiff1d(np.concatenate([np.empty(0, np.int64), *lists]), known).tolist()
    strings.update(zip(new, text.model.strings(new), strict=True))


def _triggers(
    contexts: TextContexts,
    autoencoder: Autoencoder,
    peaks: pd.DataFrame,
    latents: Sequence[int],
    heartbeat: Callable[[], None],
) -> dict[int, list[int] | None]:
    return shortest_triggers(
        contexts,
        contexts.sites.input,
        autoencoder,
        peaks,
        contexts.rows.tokens.numpy(),
        latents,
        opening=contexts.opening,
        first_position=contexts.first_position,
        norm_limits=contexts.norm_limits,
        heartbeat=heartbeat,
    )


def _logit_columns(
    contexts: TextContexts, autoencoder: Autoencoder
) -> tuple[dict[str, Any], Int[np.ndarray, "d_sae top"]] | None:
    """Return the columns of logit effects and the top tokens; None if no matrix leads from a site to the logits.

    The effects of all sites that a latent writes add up. Those of a second language model add nothing: it has logits of
    its own.
    """
    matrices = [contexts.into_stream(site) for site in contexts.sites.target]
    if any(matrix is None for matrix in matrices):
        return None
    stream = torch.cat([matrix for matrix in matrices if matrix is not None])
    if len(stream) != autoencoder.d_out:
        # A control writes where it reads, and the widths differ.
        return None
    try:
        unembedding = contexts.model.unembedding()
    except ValueError as error:
        log.warning("no effects on logits: %s", error)
        return None
    return logit_columns(autoencoder.W_dec, unembedding, stream)


def weights_digest(autoencoder: Autoencoder) -> str:
    """Return 16 hexadecimal digits that identify a dictionary's encoder and decoder, before and after its export."""
    digest = blake2b(digest_size=8)
    for tensor in (autoencoder.W_enc.T, autoencoder.W_dec):
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_findings(found: LatentFindings, contexts: Contexts, meta: Meta, folder: Path) -> None:
    """Replace a latent store by the findings.

    Raises:
        OSError: no space is left; an earlier store is untouched.
    """
    if isinstance(contexts, TextContexts):
        tokens = contexts.rows.tokens.numpy()
        small = tokens.astype(np.uint16 if contexts.model.d_vocab <= 2**16 else np.int32)
        write_latent_store(folder, found.latents, found.hits(), meta, tokens=small, strings=found.strings)
    else:
        assert isinstance(contexts, SampleContexts)
        ids = np.unique(np.concatenate([hits["context"].to_numpy(np.int64) for hits in found.hits()]))
        samples = contexts.vectors[ids].float().cpu().numpy()
        write_latent_store(folder, found.latents, found.hits(), meta, sample_ids=ids, samples=samples)


def with_control(meta: Meta, own: LatentFindings, control: LatentFindings | None) -> Meta:
    """Return the facts with the numbers of a dictionary and those of its control, if it has one."""
    meta = replace(meta, aggregates=dict(own.numbers), meanings={name: str(MEANINGS[name]) for name in own.numbers})
    if control is None:
        return meta
    return replace(meta, control=dict(control.numbers), control_latents=len(control.latents))

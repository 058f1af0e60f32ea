"""Findings: everything that is known of a dictionary's latents after a pass, as the latent store holds it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.latents.contexts import Contexts, SampleContexts, TextContexts
from fsae.latents.labels import MEANINGS, aggregates, classes, labels, text_columns
from fsae.latents.survey import Survey
from fsae.latents.tables import cofiring_columns, hit_table, tally_columns
from fsae.latents.triggers import shortest_triggers
from fsae.latents.weights import logit_columns, weight_columns
from fsae.outputs.latent_store import Meta, write_latent_store

log = logging.getLogger(__name__)

# Lists of tokens of which the store holds the text.
_TOKEN_LISTS = ("top_tokens", "logit_top", "logit_bottom", "raw_logit_top", "raw_logit_bottom", "trigger")


@dataclass(frozen=True, eq=False)
class Findings:
    """Findings on the latents of one dictionary.

    Attributes:
        latents: a row per latent; see `LATENT_COLUMNS`.
        hits: top contexts and samples; see `HIT_COLUMNS`.
        numbers: of the dictionary as a whole.
        strings: the text of every token id that occurs in the data or in the tables; empty without text.
    """

    latents: pd.DataFrame
    hits: pd.DataFrame
    numbers: dict[str, float]
    strings: dict[int, str]


def findings(
    contexts: Contexts,
    autoencoder: Autoencoder,
    survey: Survey,
    partners: int,
    triggers: int = 0,
    heartbeat: Callable[[], None] = lambda: None,
) -> Findings:
    """Return the tables of a dictionary whose survey is complete.

    Args:
        contexts: the data that were surveyed.
        autoencoder: the dictionary.
        survey: of its latents.
        partners: latents that co-fire with each latent, at most.
        triggers: latents whose shortest trigger is searched for: of those that are on, evenly spaced ones.
        heartbeat: called between forward passes; may raise to stop.
    """
    columns: dict[str, Any] = tally_columns(survey)
    hits = hit_table(survey)
    found = survey.cofiring.partners(columns["density"], columns["count"], partners)
    columns |= cofiring_columns(found) | weight_columns(autoencoder.W_enc, autoencoder.W_dec)
    if isinstance(contexts, TextContexts):
        inputs = None
        if (effects := _logit_columns(contexts, autoencoder)) is not None:
            own, inputs = effects
            columns |= own
        columns |= text_columns(hits, contexts.rows.tokens.numpy(), autoencoder.d_sae, inputs)
        columns["trigger"] = _triggers(contexts, autoencoder, hits, columns["count"], triggers, heartbeat)
    table = pd.DataFrame(columns)
    table["class"] = classes(table)
    strings: dict[int, str] = {}
    if isinstance(contexts, TextContexts):
        strings = _token_strings(contexts, table)
        table["label"] = labels(table, hits, contexts.rows.tokens.numpy(), strings)
    return Findings(table, hits, aggregates(table), strings)


def _triggers(
    contexts: TextContexts,
    autoencoder: Autoencoder,
    hits: pd.DataFrame,
    count: Int[np.ndarray, " d_sae"],
    number: int,
    heartbeat: Callable[[], None],
) -> list[list[int] | None]:
    alive = count.nonzero()[0]
    chosen = alive[np.unique(np.linspace(0, len(alive) - 1, min(number, len(alive))).round().astype(int))]
    found = shortest_triggers(
        contexts.model,
        contexts.site,
        autoencoder,
        hits,
        contexts.rows.tokens.numpy(),
        chosen.tolist(),
        opening=contexts.opening,
        first_position=contexts.first_position,
        norm_limit=contexts.norm_limit,
        heartbeat=heartbeat,
    )
    return [found.get(latent) for latent in range(autoencoder.d_sae)]


def _logit_columns(
    contexts: TextContexts, autoencoder: Autoencoder
) -> tuple[dict[str, Any], Int[np.ndarray, "d_sae top"]] | None:
    """Return the columns of logit effects and the top tokens; None if no matrix leads from the site to the logits."""
    stream = contexts.model.into_stream(contexts.site)
    if stream is None:
        return None
    try:
        unembedding = contexts.model.unembedding()
    except ValueError as error:
        log.warning("no effects on logits: %s", error)
        return None
    return logit_columns(autoencoder.W_dec, unembedding, stream)


def _token_strings(contexts: TextContexts, table: pd.DataFrame) -> dict[int, str]:
    """Return the text of every token id that occurs in the data or in the table."""
    ids = [np.unique(contexts.rows.tokens.numpy())]
    for name in _TOKEN_LISTS:
        if name in table:
            ids += [np.asarray(each) for each in table[name] if each is not None]
    known = np.unique(np.concatenate(ids)).tolist()
    return dict(zip(known, contexts.model.strings(known), strict=True))


def weights_digest(autoencoder: Autoencoder) -> str:
    """Return 16 hexadecimal digits that identify a dictionary's encoder and decoder, before and after its export."""
    digest = blake2b(digest_size=8)
    for tensor in (autoencoder.W_enc.T, autoencoder.W_dec):
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_findings(found: Findings, contexts: Contexts, meta: Meta, folder: Path) -> None:
    """Replace a latent store by the findings.

    Raises:
        OSError: no space is left; an earlier store is untouched.
    """
    if isinstance(contexts, TextContexts):
        tokens = contexts.rows.tokens.numpy()
        small = tokens.astype(np.uint16 if contexts.model.d_vocab <= 2**16 else np.int32)
        write_latent_store(folder, found.latents, found.hits, meta, tokens=small, strings=found.strings)
    else:
        assert isinstance(contexts, SampleContexts)
        ids = np.unique(found.hits["context"].to_numpy())
        samples = contexts.vectors[ids].float().cpu().numpy()
        write_latent_store(folder, found.latents, found.hits, meta, sample_ids=ids, samples=samples)


def with_control(meta: Meta, own: Findings, control: Findings | None) -> Meta:
    """Return the facts with the numbers of a dictionary and those of its control, if it has one."""
    meta = replace(meta, aggregates=dict(own.numbers), meanings={name: str(MEANINGS[name]) for name in own.numbers})
    if control is None:
        return meta
    return replace(meta, control=dict(control.numbers), control_latents=len(control.latents))

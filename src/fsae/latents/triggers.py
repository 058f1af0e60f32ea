"""Triggers: the shortest text before a latent's peak that still switches it on."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.language_models.sites import Site
from fsae.outputs.latent_store import TOP
from fsae.sources.massive import within_all

# Share of the top code that a trigger has to reach (Foote et al. 2023).
SHARE = 0.5


class ReadableModel(Protocol):
    """The part of a language model that triggers need."""

    def activations(
        self, tokens: Int[Tensor, "sequence position"], sites: Sequence[Site]
    ) -> dict[Site, Float[Tensor, "sequence position d"]]:
        """Return the activations at each site."""
        ...


@torch.no_grad()
def shortest_triggers(
    model: ReadableModel,
    sites: Sequence[Site],
    autoencoder: Autoencoder,
    hits: pd.DataFrame,
    tokens: Int[np.ndarray, "contexts context"],
    latents: Sequence[int],
    *,
    opening: Sequence[int] = (),
    first_position: int = 0,
    norm_limits: Sequence[float] | None = None,
    rows_at_once: int = 32,
    share: float = SHARE,
    heartbeat: Callable[[], None] = lambda: None,
) -> dict[int, list[int] | None]:
    """Return for each latent the shortest text, as tokens, that ends at its strongest peak and keeps half of its code.

    Texts are the last 1, 2, 3, ... tokens up to the peak of the latent's first top context, each after `opening` at the
    beginning of a row (pruning in Foote et al. 2023, arXiv 2304.12918, which removes tokens from the left). A trigger's
    absolute code at the peak is at least `share` of the hit's. Lengths are tried in waves of 1, 2, 4, ... more, until
    one passes, so a latent costs at most twice as many rows as its trigger has tokens.

    Args:
        model: reads rows of several lengths, filled up on the right, where a decoder of text does not look.
        sites: of the latents' input.
        autoencoder: in evaluation mode and in raw units; its codes follow the rule of inference.
        hits: of the latent store.
        tokens: all text that was read.
        latents: those to measure.
        opening: tokens at the beginning of every row that was read, such as BOS; not part of a trigger.
        first_position: positions before it did not count when the store was made, and no peak is put there.
        norm_limits: of each site; a position with a vector of a greater norm does not count.
        rows_at_once: rows per forward pass.
        share: of the top code.
        heartbeat: called before each forward pass; may raise to stop.

    Returns:
        By latent, its trigger's tokens without the opening; None if it has no top context, or if no text passes.
    """
    assert not autoencoder.training
    chosen = (hits["group"].to_numpy() == TOP) & (hits["rank"].to_numpy() == 0)
    chosen &= np.isin(hits["latent"].to_numpy(), latents)
    top = [hits[name].to_numpy()[chosen].tolist() for name in ("latent", "context", "position", "value")]
    texts, wanted = {}, {}
    for latent, context, position, value in zip(*top, strict=True):
        wanted[latent] = share * abs(value)
        if position >= len(opening):
            texts[latent] = tokens[context, len(opening) : position + 1].tolist()
    found: dict[int, list[int] | None] = dict.fromkeys(latents)
    begin = 1 + max(0, first_position - len(opening))
    while texts:
        tried = [
            (latent, text[-length:])
            for latent, text in texts.items()
            for length in range(begin, min(2 * begin, len(text) + 1))
        ]
        for start in range(0, len(tried), rows_at_once):
            heartbeat()
            some = tried[start : start + rows_at_once]
            codes = _codes_at_end(model, sites, autoencoder, some, opening, norm_limits)
            for (latent, text), code in zip(some, codes, strict=True):
                # The shortest one comes first.
                if found[latent] is None and code >= wanted[latent]:
                    found[latent] = text
        begin *= 2
        texts = {latent: text for latent, text in texts.items() if found[latent] is None and len(text) >= begin}
    return found


def _codes_at_end(
    model: ReadableModel,
    sites: Sequence[Site],
    autoencoder: Autoencoder,
    texts: Sequence[tuple[int, list[int]]],
    opening: Sequence[int],
    norm_limits: Sequence[float] | None,
) -> list[float]:
    """Return the absolute code of each latent at the end of its text; 0 if the vector there is massive."""
    length = max(len(text) for _, text in texts)
    rows = torch.tensor([[*opening, *text, *text[-1:] * (length - len(text))] for _, text in texts])
    ends = torch.tensor([len(opening) + len(text) - 1 for _, text in texts])
    everywhere = model.activations(rows, sites)
    parts = [everywhere[site][torch.arange(len(texts)), ends.to(everywhere[site].device)] for site in sites]
    vectors = torch.cat(parts, dim=1)
    codes = autoencoder.encode(vectors.to(autoencoder.W_dec)).codes.dense()
    codes = codes[torch.arange(len(texts)), torch.tensor([latent for latent, _ in texts])].abs()
    if norm_limits is not None:
        codes = codes.where(within_all(parts, norm_limits).to(codes.device), 0.0)
    return codes.tolist()

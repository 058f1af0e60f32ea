"""Codes of single latents in contexts of the latent store, computed again from the text."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.language_models.activations import joined_at
from fsae.language_models.sites import Site
from fsae.latents.excerpts import Excerpt
from fsae.progress import Progress

if TYPE_CHECKING:
    from fsae.language_models.transformer_lens import TransformerLensModel


def context_codes(
    model_at: Callable[[Site], "TransformerLensModel"],
    sites: Sequence[Site],
    autoencoder: Autoencoder,
    tokens: Int[np.ndarray, "contexts context"],
    rows_at_once: int = 16,
    heartbeat: Callable[[], None] = lambda: None,
) -> Callable[[Sequence[tuple[int, Excerpt]]], list[Float[np.ndarray, " tokens"]]]:
    """Return a function that returns the absolute codes of a latent at the tokens of an excerpt, for each pair of both.

    Every context is read as a whole, as in the pass that made the store, and once for all of its excerpts.

    Args:
        model_at: returns the language model of a site.
        sites: of the latents' input.
        autoencoder: in evaluation mode and in raw units.
        tokens: all text of the store.
        rows_at_once: rows per forward pass.
        heartbeat: called after each forward pass; may raise to stop.
    """
    assert not autoencoder.training

    @torch.no_grad()
    def codes_of(pairs: Sequence[tuple[int, Excerpt]]) -> list[Float[np.ndarray, " tokens"]]:
        places = defaultdict(list)
        for number, (_, excerpt) in enumerate(pairs):
            places[excerpt.context].append(number)
        contexts = sorted(places)
        found: dict[int, np.ndarray] = {}
        progress = Progress("reading excerpts", len(contexts), "contexts")
        for begin in range(0, len(contexts), rows_at_once):
            some = contexts[begin : begin + rows_at_once]
            rows = torch.from_numpy(np.asarray(tokens[some], np.int64))
            for context, vectors in zip(some, joined_at(model_at, rows, sites), strict=True):
                codes = autoencoder.encode(vectors.to(autoencoder.W_dec)).codes.dense()
                for number in places[context]:
                    latent, excerpt = pairs[number]
                    own = codes[excerpt.begin : excerpt.begin + len(excerpt.tokens), latent]
                    found[number] = own.abs().float().cpu().numpy()
            progress.advance(len(some))
            heartbeat()
        progress.close()
        return [found[number] for number in range(len(pairs))]

    return codes_of

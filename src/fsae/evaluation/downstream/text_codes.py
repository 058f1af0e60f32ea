"""Codes of texts: what a dictionary makes of their activations, pooled to one code per latent and text."""

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.downstream.text_activations import TextActivations

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Vectors that are encoded at once.
_AT_ONCE = 8192


class Pooling(Enum):
    """The one code of a latent for a text, from its codes at the text's tokens.

    Attributes:
        mean: their mean.
        max: the greatest.
    """

    mean = "mean"
    max = "max"


@torch.no_grad()
def token_codes(
    autoencoder: Autoencoder, activations: TextActivations, heartbeat: Callable[[], None] = lambda: None
) -> "csr_array":
    """Return the codes of every token, (tokens, d_sae), float32.

    Args:
        autoencoder: in evaluation mode and in raw units: codes follow the rule of inference.
        activations: the texts.
        heartbeat: called after each batch; may raise to stop.
    """
    from scipy.sparse import csr_array

    assert not autoencoder.training
    values, columns, counts = [], [], []
    for vectors in activations.vectors.split(_AT_ONCE):
        codes = autoencoder.encode(vectors.to(autoencoder.W_dec), sparse=True).codes
        if codes.pattern is None:
            rows, latents = codes.values.nonzero(as_tuple=True)
            own = codes.values[rows, latents]
        else:
            on = codes.values != 0
            rows, latents, own = codes.pattern.rows[on], codes.pattern.columns[on], codes.values[on]
        counts.append(torch.bincount(rows, minlength=len(vectors)).cpu().numpy())
        values.append(own.float().cpu().numpy())
        columns.append(latents.cpu().numpy())
        heartbeat()
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    shape = (len(activations.vectors), autoencoder.d_sae)
    return csr_array((np.concatenate(values), np.concatenate(columns), offsets), shape=shape)


def pooled(codes: "csr_array", activations: TextActivations, pooling: Pooling) -> "csr_array":
    """Return the codes of every text, (texts, d_sae); a text without a token has zeros.

    Args:
        codes: of every token.
        activations: the texts.
        pooling: how the codes of a text's tokens become one. A maximum is of codes and zero.
    """
    from scipy.sparse import csr_array

    texts, counts = activations.texts.numpy(), activations.starts.diff().numpy()
    assert codes.shape is not None
    latents = codes.shape[1]
    if pooling is Pooling.mean:
        shares = csr_array(
            (1 / counts[texts], (texts, np.arange(len(texts)))), shape=(len(activations), len(texts)), dtype=np.float32
        )
        return csr_array(shares @ codes)
    entries = codes.tocoo()
    keys = texts[entries.row] * latents + entries.col.astype(np.int64)
    order = np.argsort(keys, kind="stable")
    distinct, begins = np.unique(keys[order], return_index=True)
    greatest = np.maximum.reduceat(entries.data[order], begins) if len(distinct) else entries.data[:0]
    place = distinct // latents, distinct % latents
    return csr_array((np.maximum(greatest, 0), place), shape=(len(activations), latents))


def mean_vectors(activations: TextActivations) -> Float[np.ndarray, "texts d_in"]:
    """Return the mean activation of every text's tokens; a text without a token has zeros."""
    counts = activations.starts.diff()
    sums = torch.zeros(len(activations), activations.vectors.shape[1])
    sums.index_add_(0, activations.texts, activations.vectors.float())
    return (sums / counts.clamp(min=1).unsqueeze(1)).numpy()

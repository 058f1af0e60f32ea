"""Controls: columns that a dictionary's codes are compared with, which owe nothing to its training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.downstream.text_activations import TextActivations
from fsae.latents.control import control_of
from fsae.seeds import generator_for

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Vectors at which thresholds of random directions are set.
_CALIBRATED_ON = 4096


def densities_in(codes: "csr_array") -> Float[np.ndarray, " d_sae"]:
    """Return the share of the rows of codes in which each latent is on."""
    assert codes.shape is not None
    return np.bincount(codes.indices, minlength=codes.shape[1]) / codes.shape[0]


def random_directions(
    autoencoder: Autoencoder, densities: Float[np.ndarray, " d_sae"], vectors: Float[Tensor, "vectors d_in"], seed: int
) -> Autoencoder | None:
    """Return as many random directions as a dictionary has live latents, each on as often as one of them.

    So the directions have the dictionary's l0 and as many candidates to choose from. None if no latent is on: there is
    nothing to equal.

    Args:
        autoencoder: the dictionary.
        densities: of its latents in the vectors.
        vectors: activations at the site. Thresholds are set at 4096 of them, at most.
        seed: of the directions and of the choice of vectors.
    """
    live = int((densities > 0).sum())
    if not live:
        return None
    if len(vectors) > _CALIBRATED_ON:
        vectors = vectors[torch.randperm(len(vectors), generator=generator_for(seed, "calibration"))[:_CALIBRATED_ON]]
    return control_of(densities, vectors.to(autoencoder.W_dec), autoencoder.d_in, live, seed)


def bag_of_tokens(activations: TextActivations) -> Float[np.ndarray, "texts tokens"]:
    """Return how many times each token is among those that were read of a text.

    With `Positions.last` this is the identity of the last token as a one-hot vector.
    """
    distinct, columns = np.unique(activations.ids.numpy(), return_inverse=True)
    counts = np.zeros((len(activations), len(distinct)))
    np.add.at(counts, (activations.texts.numpy(), columns), 1)
    return counts


def bag_of_words(texts: Sequence[str], most: int = 2000) -> Float[np.ndarray, "texts words"]:
    """Return how many times each word is in a text; no language model is needed.

    Args:
        texts: the texts.
        most: words at most; the most frequent ones.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    # Names and code have words of one letter, and a text may have no letter at all.
    counts: Any = CountVectorizer(token_pattern=r"\w+|[^\w\s]", max_features=most).fit_transform(texts)
    return np.asarray(counts.toarray(), dtype=np.float64)

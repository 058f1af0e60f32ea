"""Controls: columns that a dictionary's codes are compared with, which owe nothing to its training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.evaluation.downstream.text_activations import TextActivations
from fsae.latents.control import control_of
from fsae.seeds import generator_for

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Vectors at which thresholds of random directions are set.
_CALIBRATED_ON = 4096


def random_directions(
    autoencoder: Autoencoder, codes: "csr_array", activations: TextActivations, seed: int, count: int | None = None
) -> Autoencoder:
    """Return a dictionary of random directions, each on as often as a latent of a dictionary is on these texts.

    Args:
        autoencoder: the dictionary.
        codes: of every token of the texts.
        activations: the texts.
        seed: of the directions.
        count: directions; None for as many as the dictionary has latents.

    Raises:
        ValueError: no latent is on in any text.
    """
    assert codes.shape is not None
    densities = np.bincount(codes.indices, minlength=codes.shape[1]) / codes.shape[0]
    vectors = activations.vectors
    if len(vectors) > _CALIBRATED_ON:
        vectors = vectors[torch.randperm(len(vectors), generator=generator_for(seed, "calibration"))[:_CALIBRATED_ON]]
    vectors = vectors.to(autoencoder.W_dec)
    return control_of(densities, vectors, autoencoder.d_in, count or autoencoder.d_sae, seed)


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

"""Folding: the scale of training, and the norms of the decoder's rows, become part of the weights."""

import copy
import math
from typing import TypeVar

from fsae.autoencoders.autoencoder import Autoencoder

Folded = TypeVar("Folded", bound=Autoencoder)


def fold(autoencoder: Folded, scale: float) -> Folded:
    """Return an equal autoencoder for raw activations: it maps x to what `autoencoder` makes of x * scale, over scale.

    The same latents are on, and code_i * |W_dec_i| is the length of latent i's contribution in raw units; see
    `change_unit` of the architecture.

    Args:
        autoencoder: trained on activations multiplied by `scale`; not changed.
        scale: positive.

    Returns:
        A copy in evaluation mode.

    Raises:
        ValueError: the architecture does not define how its codes change with the unit.
    """
    assert 0 < scale < math.inf
    autoencoder.check_algebra()
    folded = copy.deepcopy(autoencoder).eval()
    folded.change_unit(scale)
    return folded

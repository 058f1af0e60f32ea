"""Folding: the scale of training, and the norms of the decoder's rows, become part of the weights."""

import copy
import math
from typing import TypeVar

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.layout import Scaling

Folded = TypeVar("Folded", bound=Autoencoder)


def fold(autoencoder: Folded, scale: float | Scaling) -> Folded:
    """Return an equal autoencoder for raw activations.

    It maps x to what `autoencoder` makes of x * scale, over the target's scale. The same latents are on, and
    code_i * |W_dec_i| is the length of latent i's contribution in raw units; see `change_unit` of the architecture.

    Args:
        autoencoder: trained on activations multiplied by `scale`; not changed.
        scale: positive factors of the parts of input and target; a number stands for all of them.

    Returns:
        A copy in evaluation mode.

    Raises:
        ValueError: the architecture does not define how its codes change with the unit.
    """
    ends = autoencoder.ends
    scaling = Scaling.of(scale, ends)
    assert all(0 < factor < math.inf for factor in scaling.input + scaling.target)
    autoencoder.check_algebra()
    folded = copy.deepcopy(autoencoder).eval()
    device, dtype = folded.W_dec.device, folded.W_dec.dtype
    folded.change_unit(
        ends.input.spread(scaling.input, device, dtype), ends.target.spread(scaling.target, device, dtype)
    )
    return folded

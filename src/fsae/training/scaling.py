"""The factors between raw activations and the inputs and targets of an autoencoder in training."""

from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.layout import Layout, Scaling
from fsae.sources.source import Source


class Scale(Enum):
    """Ways to scale activations for training: `sqrt_d` makes their mean norm sqrt(d_in), so that learning rates and
    loss weights carry over between models and sites; `none` leaves activations as they are."""

    sqrt_d = "sqrt_d"
    none = "none"


def scaling_of(source: Source, kind: Scale) -> Scaling:
    """Return the factor of each part of the source's inputs and targets, measured on its first training vectors.

    Raises:
        ValueError: all vectors of a part are zero.
    """
    inputs = _factors(source.first_vectors(), source.input_layout, kind)
    if source.target_layout == source.input_layout:
        return Scaling(inputs, inputs)
    return Scaling(inputs, _factors(source.first_targets(), source.target_layout, kind))


def _factors(vectors: Float[Tensor, "vectors d"], layout: Layout, kind: Scale) -> tuple[float, ...]:
    return tuple(scale_of(part, kind) for part in layout.split(vectors))


def scale_of(vectors: Float[Tensor, "vectors d_in"], kind: Scale, rows_at_once: int = 65_536) -> float:
    """Return the factor, measured on raw vectors of the training part, `rows_at_once` of them in float32 at a time.

    Raises:
        ValueError: all vectors are zero.
    """
    if kind is Scale.none:
        return 1.0
    total = sum(float(part.float().norm(dim=1).double().sum()) for part in torch.split(vectors, rows_at_once))
    if total == 0:
        raise ValueError("every activation is zero at this site; choose another site, or trainer.activation_scale=none")
    return vectors.shape[1] ** 0.5 * len(vectors) / total

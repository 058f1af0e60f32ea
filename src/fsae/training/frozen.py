"""Frozen weights: the controls that train like any other autoencoder, with a part kept at its random start."""

from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder

# The least cosine of a decoder row and its start under `soft_decoder` (arXiv 2602.14111).
CONE = 0.8


class Frozen(Enum):
    """The weights that training leaves at their random start (Korznikov et al. 2026, arXiv 2602.14111).

    `decoder` and `encoder` freeze W_dec or W_enc. `soft_decoder` lets a decoder row turn until its cosine with its
    start is 0.8. `all` trains nothing, so that the dictionary is random: its biases and thresholds are those that
    densities of the first vectors, or of batches, decide. Biases and thresholds are trained in all other cases.
    """

    none = "none"
    decoder = "decoder"
    soft_decoder = "soft_decoder"
    encoder = "encoder"
    all = "all"

    @property
    def fixes_decoder(self) -> bool:
        """True if W_dec never changes."""
        return self in (Frozen.decoder, Frozen.all)

    @property
    def fixes_encoder(self) -> bool:
        """True if W_enc never changes."""
        return self in (Frozen.encoder, Frozen.all)


def freeze(autoencoder: SparseAutoencoder, frozen: Frozen) -> None:
    """Exclude the frozen parameters from training."""
    for name, parameter in autoencoder.named_parameters():
        fixed = {"W_dec": frozen.fixes_decoder, "W_enc": frozen.fixes_encoder}.get(name, frozen is Frozen.all)
        if fixed:
            parameter.requires_grad_(False)


@torch.no_grad()
def keep_in_cone(rows: Float[Tensor, "d_sae d_in"], start: Float[Tensor, "d_sae d_in"], cosine: float = CONE) -> None:
    """Turn rows in place to within a cone around their start; rows inside it stay, and each keeps its norm.

    A row outside keeps the direction of its part that is orthogonal to the start.

    Args:
        rows: of any norm.
        start: unit rows, the axes of the cones.
        cosine: of half the cone's opening angle.
    """
    norms = rows.norm(dim=1, keepdim=True)
    along = (rows * start).sum(dim=1, keepdim=True)
    across = torch.nn.functional.normalize(rows - along * start, dim=1)
    edge = norms * (cosine * start + (1 - cosine**2) ** 0.5 * across)
    rows.copy_(torch.where(along < cosine * norms, edge, rows))

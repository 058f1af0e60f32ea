"""Direct feature attribution: what each head at each source position adds to a latent's pre-activation."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.record import AffineMap
from fsae.language_models.attention import Attention

# Contributions in memory at a time.
_ENTRIES_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class HeadMap:
    """The affine map z @ matrix + rest, from all heads' outputs z, side by side, to the vectors of a dictionary.

    Attributes:
        matrix: the identity at attn_z, W_O at attn_out.
        rest: the bias of attention's output; zero at attn_z.
    """

    matrix: Float[Tensor, "d_heads d_in"]
    rest: Float[Tensor, " d_in"]


def encoder_of(autoencoder: Autoencoder) -> AffineMap:
    """Return the affine map from inputs to pre-activations.

    Raises:
        ValueError: there is none.
    """
    if not autoencoder.settings_type.affine_encoder:
        raise ValueError(
            f"the pre-activations of {type(autoencoder).__name__} are no affine map of its inputs, so heads contribute "
            "no parts of them; leave attention out of eval"
        )
    encoder = autoencoder.encode(torch.zeros(1, autoencoder.d_in).to(autoencoder.W_dec)).pre_activations
    assert encoder is not None
    return encoder


@dataclass(frozen=True, eq=False)
class Contributions:
    """Contributions to pre-activations of some latents, each at one position.

    pre-activation = contributions.sum over heads and sources + constant: the values are linear in the pre-activation
    if the attention pattern is fixed.
    """

    by_source: Float[Tensor, "pair head source"]
    constant: Float[Tensor, " pair"]


def contributions(
    attention: Attention,
    heads: HeadMap,
    encoder: AffineMap,
    rows: Int[Tensor, " pair"],
    positions: Int[Tensor, " pair"],
    latents: Int[Tensor, " pair"],
) -> Contributions:
    """Return pattern[destination, source] * values[source] @ W_enc of each head, for pairs of a position and a latent.

    Kissane et al. 2024 (arXiv 2406.17759).

    Args:
        attention: of the rows.
        heads: from the heads' outputs to the dictionary's inputs.
        encoder: from the inputs to pre-activations.
        rows, positions, latents: the pairs.
    """
    chosen, places = latents.unique(return_inverse=True)
    directions = heads.matrix @ encoder.weight[:, chosen].to(heads.matrix)
    pattern, values = attention.pattern, attention.values
    slices = directions.unflatten(0, (pattern.shape[1], -1))
    # How much each value adds if all attention is on it.
    added = torch.einsum("rshe,hel->rlhs", values, slices)
    by_source = pattern[rows, :, positions] * added[rows, places]
    centre = encoder.centre if encoder.centre is not None else torch.zeros_like(heads.rest)
    constant = (heads.rest - centre.to(heads.rest)) @ encoder.weight[:, chosen].to(heads.rest)
    constant = constant + encoder.bias[chosen].to(constant)
    return Contributions(by_source, constant[places])


def pairs_at_once(attention: Attention, entries: int = _ENTRIES_AT_ONCE) -> int:
    """Return how many pairs of a position and a latent have so many contributions together."""
    return max(1, entries // (attention.pattern.shape[1] * attention.pattern.shape[3]))

"""Activations at the sites of one language model or of several with the same tokens."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsae.language_models.sites import Site

if TYPE_CHECKING:
    from fsae.language_models.transformer_lens import TransformerLensModel


def activations_at(
    model_at: Callable[[Site], "TransformerLensModel"], tokens: Int[Tensor, "row context"], sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "row context d"]]:
    """Return the activations at each site, from one forward pass of each model that has one of the sites.

    Args:
        model_at: returns the model of a site.
        tokens: the rows.
        sites: the sites to read.
    """
    found: dict[Site, Tensor] = {}
    for model in dict.fromkeys(map(model_at, sites)):
        own = {site.within: site for site in sites if model_at(site) is model}
        read = model.activations(tokens, list(own))
        found |= {own[within]: vectors for within, vectors in read.items()}
    return found


def joined_at(
    model_at: Callable[[Site], "TransformerLensModel"], tokens: Int[Tensor, "row context"], sites: Sequence[Site]
) -> Float[Tensor, "row context d"]:
    """Return the activations at the sites side by side, as a dictionary of these sites reads them.

    Args:
        model_at: returns the model of a site.
        tokens: the rows.
        sites: the sites, in the order of the dictionary's parts.
    """
    read = activations_at(model_at, tokens, sites)
    return torch.cat([read[site] for site in sites], dim=-1)

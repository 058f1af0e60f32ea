"""Matches: for every latent of one dictionary the latent of another one with the most similar decoder row."""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

# Entries of a block of cosines: 64 MB.
_ENTRIES = 2**24


@torch.no_grad()
def matched_latents(
    first: Float[Tensor, "n d_in"], second: Float[Tensor, "m d_in"], entries: int = _ENTRIES
) -> pd.DataFrame:
    """Return a row per latent of the first dictionary: `first`, `second` and the cosine of their decoder rows.

    Several latents may have the same partner, as in Sharkey et al. (2022). A row of zeros has no partner.

    Args:
        first, second: decoder rows.
        entries: cosines that are held at once.

    Raises:
        ValueError: the rows have different widths.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"the dictionaries read vectors of width {first.shape[1]} and {second.shape[1]}, so their latents cannot "
            "be matched; compare dictionaries of one site"
        )
    first, second = (torch.nn.functional.normalize(each.float(), dim=1) for each in (first, second))
    best = [(rows @ second.T).max(1) for rows in first.split(max(1, entries // len(second)))]
    cosine, partner = torch.cat([each.values for each in best]), torch.cat([each.indices for each in best])
    has_direction = first.norm(dim=1) > 0
    latents = has_direction.nonzero().squeeze(1)
    columns = {"first": latents, "second": partner[latents], "cosine": cosine[latents]}
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})

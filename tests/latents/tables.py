"""Tables of a latent store that tests write by hand."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fsae.outputs.latent_store import HIT_COLUMNS, SAMPLED, TOP


def hit(
    latent: int,
    context: int,
    values: Sequence[float] | np.ndarray,
    *,
    rank: int = 0,
    begin: int = 0,
    group: str = TOP,
    bin: int = 0,
) -> dict:
    """A hit whose peak is the largest absolute value of its window."""
    codes = np.asarray(values, np.float32)
    peak = int(np.nanargmax(np.abs(codes)))
    found = (latent, group, bin, rank, context, begin + peak, codes[peak], begin, codes)
    return dict(zip(HIT_COLUMNS, found, strict=True))


def hits_of(rows: Sequence[dict]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(HIT_COLUMNS))


def hits_where(codes: np.ndarray, *, top: int, sampled: int = 0, window: int = 100) -> pd.DataFrame:
    """The top contexts, and as many others as samples, of codes (contexts, context, d_sae)."""
    rows = []
    for latent in range(codes.shape[2]):
        own = codes[:, :, latent]
        largest = np.abs(own).max(1)
        order = [int(context) for context in np.argsort(-largest, kind="stable") if largest[context] > 0]
        for group, chosen in ((TOP, order[:top]), (SAMPLED, order[top : top + sampled])):
            for rank, context in enumerate(chosen):
                peak = int(np.abs(own[context]).argmax())
                begin = max(0, peak - window)
                values = own[context, begin : peak + window + 1]
                rows.append(hit(latent, context, values, rank=rank, begin=begin, group=group))
    return hits_of(rows)

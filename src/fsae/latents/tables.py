"""The tables of the latent store, made of a survey."""

from typing import Any

import numpy as np
import pandas as pd

from fsae.latents.cofiring import Partners
from fsae.latents.survey import Survey
from fsae.outputs.latent_store import TOP

_NUMBERS = ("latent", "bin", "rank", "context", "position", "value")


def hit_table(survey: Survey, first: int = 0, end: int | None = None) -> pd.DataFrame:
    """Return the hits, ordered by latent, group, bin from the strongest down, and rank; see `HIT_COLUMNS`.

    Windows end at the edges of their document; positions within that did not count are null.

    Args:
        survey: of some latents.
        first, end: the latents, counted from the first one of the survey.
    """
    tables = []
    for group, rows in survey.hits.rows(first, end).items():
        columns: dict[str, Any] = {name: rows[name].cpu().numpy() for name in _NUMBERS}
        width = survey.hits.sizes.window
        windows = rows["values"].cpu().numpy()
        counted = ~np.isnan(windows)
        begins, ends = counted.argmax(1), windows.shape[1] - counted[:, ::-1].argmax(1)
        columns["begin"] = columns["position"] - width + begins
        columns["values"] = [window[a:b] for window, a, b in zip(windows, begins, ends, strict=True)]
        tables.append(pd.DataFrame({"group": group} | columns))
    table = pd.concat(tables)
    order = np.lexsort((table["rank"], -table["bin"] * (table["group"] != TOP), table["group"] != TOP, table["latent"]))
    return table.iloc[order].reset_index(drop=True)


def tally_columns(survey: Survey) -> dict[str, Any]:
    """Return the columns of counts and moments."""
    tally = survey.tally
    mean, std = tally.moments()
    count = tally.count
    return {
        "latent": np.arange(survey.latents.start, survey.latents.stop, dtype=np.int32),
        "count": count.cpu().numpy(),
        "density": (count.double() / max(1, tally.samples)).cpu().numpy(),
        "max": survey.hits.largest().cpu().numpy(),
        "mean": mean.cpu().numpy(),
        "std": std.cpu().numpy(),
        "histogram": list(tally.histogram.cpu().numpy().astype(np.int64)),
    }


def cofiring_columns(partners: Partners) -> dict[str, list[np.ndarray]]:
    """Return the columns of co-firing latents; lists are shorter if a latent has few partners."""
    there = partners.latents >= 0
    columns = {
        "cofiring": partners.latents,
        "cofiring_lift": partners.lift,
        "cofiring_share": partners.share,
        "cofiring_error": partners.error,
        "cofiring_jaccard": partners.jaccard,
    }
    return {name: [row[own] for row, own in zip(values, there, strict=True)] for name, values in columns.items()}

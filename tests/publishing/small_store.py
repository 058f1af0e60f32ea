"""A latent store of three latents and twelve tokens, small enough to check by hand."""

from pathlib import Path

import numpy as np
import pandas as pd

from fsae.outputs.latent_store import SAMPLED, TOP, LatentStore, Meta, latent_rows, write_latent_store

# Lengths 2, 0 and 5.
W_DEC = np.array([[0.0, -2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 4.0, 0.0]], np.float32)
EDGES = [0.25, 0.5, 1.0, 2.0]
TOKENS = np.array([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]], np.int32)
STRINGS = {0: "<bos>", 1: " a", 2: "", 3: "\0", 4: "d", 5: "é"}
# Which of 10 tokens that counted each latent is on for.
ON = np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [0] * 10, [1, 1, 0, 1, 1, 0, 0, 0, 0, 0]], bool)


def write_small_store(folder: Path, largest: float = 1.5) -> LatentStore:
    """Write it; latent 1 is dead, and the largest code of latent 0 is `largest`."""
    count = ON.sum(1)
    none = [None, None]
    table = pd.DataFrame(
        {
            "latent": np.arange(3, dtype=np.int32), "count": count, "density": count / 10,
            "max": np.array([largest, np.nan, 0.4], np.float32), "label": ["' a'", None, "x" * 600],
            "histogram": [[1, 0, 2], [0, 0, 0], [4, 0, 0]],
            "logit_top": [[1, 2], *none], "logit_top_values": [[0.123456789, 0.1], *none],
            "logit_bottom": [[5], *none], "logit_bottom_values": [[-2.0], *none],
            "decoder_neighbours": [[2], None, [0]], "decoder_cosines": [[0.0], None, [0.0]],
            "cofiring": [[2], None, [0]], "cofiring_share": [[2 / 3], None, [2 / 4]],
        }
    )  # fmt: skip
    hits = pd.DataFrame(
        {
            "latent": [0, 0, 0, 2], "group": [TOP, TOP, SAMPLED, TOP], "bin": [2, 0, 2, 0], "rank": [0, 1, 0, 0],
            "context": [0, 1, 0, 1], "position": [3, 2, 3, 1], "value": [largest, 0.3, largest, 0.4],
            "begin": [1, 1, 1, 0],
            "values": [[0.0, 1.2, largest, 0.0], [np.nan, 0.3], [0.0, 1.2, largest, 0.0], [np.nan, 0.4, 0.0]],
        }
    )  # fmt: skip
    meta = Meta(
        kind="text", d_sae=3, architecture="topk", weights="0123", positions=10, excluded={"special or skipped": 2},
        contexts=2, context=6, window=2, top=2, per_bin=1, bin_edges=EDGES, seed=0, model="tiny", site="resid_mid.1",
        part="held_out", dtype="float32",
    )  # fmt: skip
    write_latent_store(folder, latent_rows(table), [hits], meta, tokens=TOKENS, strings=STRINGS)
    return LatentStore(folder)

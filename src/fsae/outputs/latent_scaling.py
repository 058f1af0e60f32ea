"""The parts of a crosscoder that its latents are of, as a run's folder holds them: `crosscoder.json`.

It has a table for each autoencoder of the run, with a list per column and an entry per latent; see the evaluation
`crosscoder`, which writes it.
"""

import json
from pathlib import Path
from typing import Any

from fsae.outputs.run_folder import RunFolder

LATENT_SCALING = "crosscoder.json"

# A latent is of one part alone if both ratios are below these limits (Minder et al. 2025, arXiv 2504.02922).
NU_RECONSTRUCTION, NU_ERROR = 0.5, 0.2


def read_latent_scaling(latents: Path, d_sae: int) -> dict[str, list[Any]] | None:
    """Return the table of the autoencoder whose latent store is in `latents`; None if its run has none.

    Args:
        latents: folder of the store.
        d_sae: latents; the table of a file that has another number of them is left out.
    """
    member = int(latents.name) if latents.name.isdecimal() else None
    run = RunFolder(latents.parent if member is None else latents.parent.parent)
    path = run.path / LATENT_SCALING
    if not path.is_file() or latents not in run.latent_stores:
        return None
    tables = json.loads(path.read_text(encoding="utf-8"))
    number = member or 0
    if number >= len(tables) or len(tables[number]["part"]) != d_sae:
        return None
    return tables[number]

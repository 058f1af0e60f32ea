"""Tables of runs, from their folders."""

import glob
from pathlib import Path
from typing import TYPE_CHECKING

from fsae.analysis.runs import collect_folders

if TYPE_CHECKING:
    import pandas as pd


def collect(*folders: str | Path) -> "pd.DataFrame":
    """Return a table of runs, one row per run.

    Args:
        *folders: run folders, sweeps' folders, folders above some, or patterns such as "outputs/sweeps/2026-11-*".

    Returns:
        Columns: `run`, `folder`, `state`, `failure`, `sweep`, `commit`; the settings by dotted key, as numbers if all
        values of one are; `eval/...` and `data/...`, the numbers of results.json, NaN if they are not finite;
        `density/...`, the histogram's lists. What a run lacks is None or NaN.

    Raises:
        ValueError: no argument, a folder does not exist, a pattern fits none, or there is no run in any.
    """
    if not folders:
        raise ValueError("expected at least one folder, found none; name a run's or a sweep's")
    return collect_folders([path for folder in folders for path in _fitting(Path(folder).expanduser())])


def _fitting(path: Path) -> list[Path]:
    """Return the folders that a pattern fits, or the one that is named."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    found = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if Path(each).is_dir())  # noqa: PTH207
    if not found:
        raise ValueError(f"{path}: no folder fits this pattern (seen from {Path.cwd()})")
    return found

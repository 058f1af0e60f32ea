"""Arms of a study: finished runs that differ in their seed only."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fsae.analysis.design import REPLICATES, comparable, design_of
from fsae.analysis.numbers import shown
from fsae.analysis.runs import collect_folders


@dataclass(frozen=True, eq=False)
class Arm:
    """Runs that differ in their seed only.

    Attributes:
        settings: the settings in which some arms of the study differ, as text.
        runs: rows of `collect_folders`.
    """

    settings: dict[str, str]
    runs: pd.DataFrame

    def by_seed(self, metric: str) -> dict[str, float]:
        """Return the values of a metric, named without `eval/`; for several runs of one seed, their mean."""
        values: dict[str, list[float]] = {}
        column = self.runs[f"eval/{metric}"]
        if metric == "best_fvu":
            # A single autoencoder is its own best member.
            column = column.fillna(self.runs["eval/fvu"])
        for seed, value in zip(self.runs["seed"].map(shown), column, strict=True):
            if np.isfinite(value):
                values.setdefault(seed, []).append(value)
        return {seed: float(np.mean(each)) for seed, each in values.items()}


def read_arms(folders: Sequence[Path], needed: Collection[str], metrics: Collection[str]) -> list[Arm]:
    """Return the arms of the runs in these folders.

    Args:
        folders: folders of runs or of sweeps, or any above them.
        needed: settings that every arm reports, even if they do not differ.
        metrics: metrics that some run must have, without `eval/`.

    Raises:
        SystemExit: no run has a setting or metric of this name.
    """
    return arms_of(comparable(collect_folders(folders)), needed, metrics)


def arms_of(runs: pd.DataFrame, needed: Collection[str], metrics: Collection[str]) -> list[Arm]:
    """Return the arms of runs that were read already."""
    missing = [name for name in (*needed, *(f"eval/{metric}" for metric in metrics)) if name not in runs]
    if missing:
        raise SystemExit(f"no run has {', '.join(missing)}")
    design = design_of(runs)
    settings = [name for name in (*design.varied, *design.follows) if name not in REPLICATES]
    settings += [name for name in needed if name not in settings]
    # Runs without any such setting are one arm.
    texts = [tuple(row) for row in runs[settings].map(shown).astype(str).to_numpy()]
    groups = {values: runs.loc[[each == values for each in texts]] for values in dict.fromkeys(texts)}
    return [Arm(dict(zip(settings, values, strict=True)), of_arm) for values, of_arm in groups.items()]

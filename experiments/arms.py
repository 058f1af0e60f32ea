"""Arms of a study: finished runs that differ in their seed only."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from fsae.analysis.design import REPLICATES, comparable, design_of
from fsae.analysis.numbers import shown
from fsae.analysis.runs import collect_folders

# Fewer have no interval.
MIN_SEEDS = 3


@dataclass(frozen=True, eq=False)
class Arm:
    """Runs that differ in their seed only.

    Attributes:
        settings: those in which some arms of the study differ, as text.
        runs: as `collect_folders` gives them.
    """

    settings: dict[str, str]
    runs: pd.DataFrame

    def by_seed(self, metric: str) -> dict[str, float]:
        """Values of a metric, named without `eval/`; the mean of those of one seed."""
        values: dict[str, list[float]] = {}
        column = self.runs[f"eval/{metric}"]
        if metric == "best_fvu":
            # Of an autoencoder by itself.
            column = column.fillna(self.runs["eval/fvu"])
        for seed, value in zip(self.runs["seed"].map(shown), column, strict=True):
            if np.isfinite(value):
                values.setdefault(seed, []).append(value)
        return {seed: float(np.mean(each)) for seed, each in values.items()}


def read_arms(folders: Sequence[Path], needed: Collection[str], metrics: Collection[str]) -> list[Arm]:
    """The arms that these folders' runs make.

    Args:
        folders: of runs, of sweeps, or any above some.
        needed: settings that the caller asks for; they are told whether they differ or not.
        metrics: likewise, without `eval/`.

    Raises:
        SystemExit: no run has a setting or metric of this name.
    """
    return arms_of(comparable(collect_folders(folders)), needed, metrics)


def arms_of(runs: pd.DataFrame, needed: Collection[str], metrics: Collection[str]) -> list[Arm]:
    """`read_arms` of runs that are read."""
    missing = [name for name in (*needed, *(f"eval/{metric}" for metric in metrics)) if name not in runs]
    if missing:
        raise SystemExit(f"no run has {', '.join(missing)}")
    design = design_of(runs)
    settings = [name for name in (*design.varied, *design.follows) if name not in REPLICATES]
    settings += [name for name in needed if name not in settings]
    # Of runs without any such setting, too: one arm.
    texts = [tuple(row) for row in runs[settings].map(shown).astype(str).to_numpy()]
    groups = {values: runs.loc[[each == values for each in texts]] for values in dict.fromkeys(texts)}
    return [Arm(dict(zip(settings, values, strict=True)), of_arm) for values, of_arm in groups.items()]


def interval_of(values: np.ndarray) -> tuple[float, float] | None:
    """The 95 % interval of their mean by Student's t; None where they are fewer than three.

    A bootstrap of five values has next to nothing to draw from where some of them are nearly equal: its intervals then
    reach several times as far to one side.
    """
    if len(values) < MIN_SEEDS:
        return None
    reach = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)

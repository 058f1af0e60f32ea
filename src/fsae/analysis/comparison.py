"""Comparison of runs with and without the penalty at matched sparsity: paired differences, intervals, verdicts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from fsae.analysis.design import Design
from fsae.analysis.intervals import MIN_SEEDS, interval_of
from fsae.analysis.metrics import in_tables
from fsae.analysis.numbers import numbers_in_order
from fsae.outputs.results import Better, Meaning

# The numbers that come first in every comparison; two of them have no better direction.
COMPARED_FIRST = (
    "eval/fvu",
    "eval/ce_recovered_zero",
    "eval/dead_share",
    "eval/code_correlation_excess",
    "eval/decoder_max_cosine",
)

# Per curve of a seed: fewer points leave too much between them unknown.
MIN_SPARSITIES = 4
# Number of points at which two curves are compared, evenly spaced in the logarithm of l0.
GRID = 65
ALL_ARCHITECTURES = "all"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of one treatment minus the baseline's, at the same l0.

    Attributes:
        condition, arch, treatment: what is compared; `arch` is "all" for the mean over architectures and conditions.
        metric: as `eval/<metric>`.
        l0: lower and upper end of the range of l0 that every curve covers; None if nothing was compared.
        baseline: the metric without the penalty, over the same range; NaN if nothing was compared.
        differences: treatment minus baseline by seed, each the mean over log l0 within the range.
        interval: 95 % interval of their mean; None with fewer than three differences.
        obstacle: the reason why nothing was compared, or an empty text.
        better: which way the metric is better.
    """

    condition: str
    arch: str
    treatment: str
    metric: str
    l0: tuple[float, float] | None = None
    baseline: float = math.nan
    differences: dict[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    obstacle: str = ""
    better: Better = Better.neither

    @property
    def difference(self) -> float:
        """Return the mean over seeds; NaN if nothing was compared."""
        return float(np.mean(list(self.differences.values()))) if self.differences else math.nan

    @property
    def outcome(self) -> str:
        """Return "lower", "higher", "none" (no difference found), "few" (too few values) or "not" (comparable)."""
        if self.obstacle:
            return "not"
        if self.interval is None:
            return "few"
        low, high = self.interval
        return "lower" if high < 0 else "higher" if low > 0 else "none"

    @property
    def worth(self) -> str:
        """Return "better" or "worse" if a difference was found and the metric has a better direction, else ""."""
        if self.better is Better.neither or self.outcome not in ("lower", "higher"):
            return ""
        return "better" if (self.better is Better.more) == (self.outcome == "higher") else "worse"

    @property
    def verdict(self) -> str:
        """Return the outcome as a sentence that claims no more than the interval does."""
        n = len(self.differences)
        if self.obstacle:
            return f"not comparable: {self.obstacle}"
        if self.interval is None:
            agreement = _agreement(list(self.differences.values()))
            return f"too few seeds to say: {n} of at least {MIN_SEEDS}{agreement}"
        if self.interval == (0.0, 0.0):
            return f"the same in all {n} pairs"
        low, high = self.interval
        if self.outcome == "none":
            ends = in_step(abs(low), abs(high))
            lower, higher = (f"{end} {side}" for end, side in zip(ends, ("lower", "higher"), strict=True))
            return f"no difference found at this precision: between {lower} and {higher} ({n} seeds)"
        near, far = in_step(*sorted((abs(low), abs(high))))
        return f"{self.outcome} by {near} to {far}{', ' if self.worth else ''}{self.worth} ({n} seeds)"


@dataclass(frozen=True, eq=False)
class Curve:
    """A metric against l0 for one seed: the runs of one sweep over sparsities, by increasing l0.

    Attributes:
        l0: above 0; runs of the same l0 are averaged.
        values: the metric there.
    """

    l0: Float[np.ndarray, " points"]
    values: Float[np.ndarray, " points"]

    def at(self, l0: Float[np.ndarray, " grid"]) -> Float[np.ndarray, " grid"]:
        """Interpolate the metric at other l0 within the curve's range, linearly in log l0 between neighbours."""
        # The end of a range may be rounded, after a logarithm and its inverse.
        assert l0.min() > self.l0[0] * (1 - 1e-9), "there is no extrapolation"
        assert l0.max() < self.l0[-1] * (1 + 1e-9), "there is no extrapolation"
        return np.interp(np.log(l0), np.log(self.l0), self.values)

    @property
    def lowest(self) -> float | None:
        """The l0 of the least value; None if it is at an end of the curve, so that the minimum may be outside."""
        place = int(self.values.argmin())
        return float(self.l0[place]) if 0 < place < len(self.l0) - 1 else None


# condition, architecture, treatment -> replicate -> curve
Curves = dict[tuple[str, str, str], dict[str, Curve]]


def curves_of(cells: pd.DataFrame, metric: str) -> Curves:
    """Return every curve of a metric, without runs that lack the metric or have no active latent."""
    found: Curves = {}
    usable = cells.loc[cells[metric].notna() & (cells["eval/l0"] > 0)]
    points: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in usable.to_dict("records"):
        key = tuple(str(row[name]) for name in ("condition", "arch", "treatment", "replicate"))
        points.setdefault(key, []).append((float(row["eval/l0"]), float(row[metric])))
    for (condition, arch, treatment, replicate), pairs in points.items():
        l0, values = np.array(pairs).T
        places, which = np.unique(l0, return_inverse=True)
        curve = Curve(places, np.bincount(which, weights=values) / np.bincount(which))
        found.setdefault((condition, arch, treatment), {})[replicate] = curve
    return found


def shared_range(curves: Iterable[Curve]) -> tuple[float, float] | None:
    """Return the range of l0 that all curves cover, or None."""
    curves = list(curves)
    low, high = max(float(each.l0[0]) for each in curves), min(float(each.l0[-1]) for each in curves)
    return (low, high) if low < high else None


def compared_numbers(meanings: Mapping[str, Meaning]) -> list[str]:
    """Return the numbers that are compared: the first ones, then all others of tables that have a better direction."""
    directed = [name for name in in_tables(meanings) if meanings[name].better is not Better.neither]
    return list(dict.fromkeys([*COMPARED_FIRST, *directed]))


def compare(design: Design, meanings: Mapping[str, Meaning]) -> list[Comparison]:
    """Compare every treatment with the baseline, by condition, architecture and metric; if there are several conditions
    or architectures, also their mean by seed.

    A seed's curve is interpolated linearly over log l0 between its own runs, at least four, and only within the range
    that the curves of every seed with and without the penalty cover. `meanings` decides which
    metrics are compared, and has the better direction of each.
    """
    found: list[Comparison] = []
    for metric in compared_numbers(meanings):
        if metric not in design.cells:
            continue
        curves = curves_of(design.cells, metric)
        better = meanings[metric].better if metric in meanings else Better.neither
        for treatment in treatments(design.cells):
            if treatment == design.baseline:
                continue
            within = [
                _compare_one(
                    Comparison(condition=condition, arch=arch, treatment=name, metric=metric, better=better),
                    curves,
                    design,
                )
                for condition, arch, name in curves
                if name == treatment
            ]
            found += within
            compared = [each for each in within if not each.obstacle]
            if len(compared) > 1:
                found.append(_mean_over(compared))
    return found


def treatments(cells: pd.DataFrame) -> list[str]:
    """Return the treatments' names by increasing weight, the baseline first; numbers are sorted by value."""
    weights = dict(zip(cells["treatment"], cells["theta"], strict=True))
    return sorted(weights, key=lambda name: (weights[name], numbers_in_order(name)))


def log_grid(low: float, high: float) -> Float[np.ndarray, " grid"]:
    """Return values of l0 from `low` to `high`, evenly spaced in its logarithm."""
    return np.exp(np.linspace(math.log(low), math.log(high), GRID))


def in_step(*values: float) -> list[str]:
    """Format numbers with the decimals that show two digits of the largest and make all of them look different."""
    # Adding zero removes the sign of a negative zero.
    values = tuple(value + 0.0 for value in values)
    largest = max(map(abs, values))
    decimals = max(0, 1 - math.floor(math.log10(largest))) if largest > 0 else 0
    while decimals < 7 and len({f"{value:.{decimals}f}" for value in values}) < len(set(values)):
        decimals += 1
    return [f"{value:.{decimals}f}" if decimals < 7 else f"{value:.1e}" for value in values]


def _compare_one(asked: Comparison, curves: Curves, design: Design) -> Comparison:
    """Carry out the comparison that names its condition, architecture, treatment and metric."""
    penalised = curves[asked.condition, asked.arch, asked.treatment]
    plain = curves.get((asked.condition, asked.arch, design.baseline))
    if not plain:
        return replace(asked, obstacle=f"no runs with {design.baseline}")
    pairs = {seed: (penalised[seed], plain[seed]) for seed in penalised if seed in plain}
    if not pairs:
        return replace(asked, obstacle="no seed with and without the penalty")
    points = {seed: min(len(curve.l0) for curve in pair) for seed, pair in pairs.items()}
    if max(points.values()) < MIN_SPARSITIES:
        return replace(asked, obstacle=f"fewer than four sparsities ({max(points.values())})")
    pairs = {seed: pair for seed, pair in pairs.items() if points[seed] >= MIN_SPARSITIES}
    shared = shared_range(curve for pair in pairs.values() for curve in pair)
    if shared is None:
        return replace(asked, obstacle="the ranges of l0 do not overlap")
    grid = log_grid(*shared)
    means = {seed: [_mean(curve.at(grid)) for curve in pair] for seed, pair in pairs.items()}
    differences = {seed: with_penalty - without for seed, (with_penalty, without) in means.items()}
    return replace(
        asked,
        l0=shared,
        baseline=float(np.mean([without for _, without in means.values()])),
        differences=differences,
        interval=interval_of(np.array(list(differences.values()))),
    )


def _mean(on_grid: Float[np.ndarray, " grid"]) -> float:
    return float(np.trapezoid(on_grid) / (len(on_grid) - 1))


def _mean_over(parts: Sequence[Comparison]) -> Comparison:
    """Return the mean over architectures and conditions, by seed: runs of one seed share their data, so they are no
    independent pairs."""
    seeds = [seed for seed in parts[0].differences if all(seed in part.differences for part in parts)]
    differences = {seed: float(np.mean([part.differences[seed] for part in parts])) for seed in seeds}
    return Comparison(
        condition=f"mean of the {len(parts)} above",
        arch=ALL_ARCHITECTURES,
        treatment=parts[0].treatment,
        metric=parts[0].metric,
        better=parts[0].better,
        baseline=float(np.mean([part.baseline for part in parts])) if seeds else math.nan,
        differences=differences,
        interval=interval_of(np.array(list(differences.values()))),
        obstacle="" if seeds else "no seed is in all of them",
    )


def _agreement(differences: Sequence[float]) -> str:
    if len(differences) < 2:
        return ""
    lower, higher = (sum(sign * value > 0 for value in differences) for sign in (-1, 1))
    if lower and higher:
        return ", of different signs"
    if not lower and not higher:
        return ", the same in each"
    which = "each" if lower + higher == len(differences) else f"{lower + higher} of them"
    return f", {'lower' if lower else 'higher'} in {which}"

"""Meanings of the held-out numbers, from the runs' files: the unit, the better direction, and the place in tables."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from fsae.outputs.results import MEASURED, Meaning, Shown, in_order, meaning_of

# The key of the meanings among a table's attributes.
_ATTRIBUTE = "meanings"


def keep_meanings(runs: pd.DataFrame, of_each: Iterable[Mapping[str, Mapping[str, str]]]) -> None:
    """Put the meanings that the runs' results have into the table's attributes; a later run's meaning counts."""
    found: dict[str, Any] = {}
    for meanings in of_each:
        found |= meanings
    runs.attrs[_ATTRIBUTE] = found


def meanings_of(runs: pd.DataFrame) -> dict[str, Meaning]:
    """Return the meaning of each number `eval/<name>`, in the order in which tables show them."""
    meanings = {name: meaning_of(written) for name, written in runs.attrs.get(_ATTRIBUTE, {}).items()}
    return {name: meanings[name] for name in in_order(meanings)}


def in_tables(meanings: Mapping[str, Meaning]) -> list[str]:
    """Return the numbers that the table of jobs has."""
    return [name for name, meaning in meanings.items() if meaning.shown is not Shown.files]


@dataclass(frozen=True, eq=False)
class Accompaniment:
    """Noise and controls of a number, which say how much a difference means.

    Attributes:
        noise: the evaluation's own standard deviation, as the root of its mean square over runs; None if it has none.
        controls: by the description of a control, l0 and the control's number in each run.
    """

    noise: float | None = None
    controls: dict[str, Float[np.ndarray, "2 runs"]] = field(default_factory=dict)


def accompaniment(cells: pd.DataFrame, metric: str, meanings: Mapping[str, Meaning]) -> Accompaniment:
    """Return the noise and the controls of a number, from the runs that have them.

    Args:
        cells: a row per run.
        metric: such as "eval/absorption".
        meanings: of all numbers.
    """
    own = metric.removeprefix(MEASURED)
    noises = [name for name, meaning in meanings.items() if meaning.noise_of == own and name in cells]
    values = cells[noises].to_numpy(float)
    values = values[np.isfinite(values)]
    controls = {}
    for name, meaning in meanings.items():
        if meaning.control_of == own and name in cells:
            found = cells[["eval/l0", name]].astype(float).dropna().to_numpy().T
            if found.size:
                controls[meaning.text.removeprefix(f"{own} of ")] = found
    return Accompaniment(float(np.sqrt((values**2).mean())) if values.size else None, controls)

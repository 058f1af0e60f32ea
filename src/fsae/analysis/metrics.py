"""Meanings of the held-out numbers, from the runs' files: the unit, the better direction, and the place in tables."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from fsae.outputs.results import Meaning, Shown, in_order, meaning_of

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

"""Numbers of the parts of a dictionary's targets, under the name of the whole's number and of the part."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fsae.outputs.results import Meaning, Shown


def of_parts(name: str, parts: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return a number of each part, as in "fvu_resid_mid.3"."""
    return {f"{name}_{part}": numbers[name] for part, numbers in parts.items()}


def meanings_of_parts(name: str, meaning: Meaning, parts: Iterable[str]) -> dict[str, Meaning]:
    """Return the meaning of a number of each part."""
    return {f"{name}_{part}": replace(meaning, text=f"{name} at {part}", shown=Shown.table) for part in parts}

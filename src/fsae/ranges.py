"""Ranges: which values each number among the settings may have, checked in one way.

A number's range stands with its field, `lr: float = field(default=1e-3, metadata=between(above=0, most=100))`, and a
test finds the fields that have none.
"""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, ClassVar

_KEY = "range"


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values that a number may have. Infinity and what is no number are in none.

    Attributes:
        least, most: the ends.
        open_least, open_most: whether the end itself is left out.
        meaning: what the number is, for messages; "" where its name says it.
    """

    least: float
    most: float
    open_least: bool = False
    open_most: bool = False
    meaning: str = ""

    def __contains__(self, value: object) -> bool:
        # To Python True is the number 1. NaN compares false with everything.
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        after = self.least < value if self.open_least else self.least <= value
        return after and (value < self.most if self.open_most else value <= self.most)

    def __str__(self) -> str:
        least = f"above {written(self.least)}" if self.open_least else f"at least {written(self.least)}"
        most = f"below {written(self.most)}" if self.open_most else f"at most {written(self.most)}"
        return f"{least} and {most}"


def between(
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    meaning: str = "",
) -> dict[str, Range]:
    """A field's metadata: its range from `least` or `above` to `most` or `below`, each end named once."""
    low, high = (least if above is None else above), (most if below is None else below)
    assert low is not None
    assert high is not None
    assert (least is None) != (above is None)
    assert (most is None) != (below is None)
    return {
        _KEY: Range(least=low, most=high, open_least=least is None, open_most=most is None, meaning=meaning),
    }


# What counts vectors, tokens, steps or the like.
COUNT = between(least=1, most=10**15)
# A count that may be none at all.
COUNT_OR_NONE = between(least=0, most=10**15)
SEED = between(least=0, most=2**32 - 1)
# A factor of a term, or of a penalty.
WEIGHT = between(least=0, most=1e12)
# A share that may be nothing or everything, one that is something, and one that is neither.
SHARE = between(least=0, most=1, meaning="a share")
SOME_SHARE = between(above=0, most=1, meaning="a share")
INNER_SHARE = between(above=0, below=1, meaning="a share")
# What an average keeps of its past.
DECAY = between(least=0, below=1)
# What is of any size, but of some.
POSITIVE = between(above=0, most=1e9)


def range_of(metadata: Any) -> Range | None:
    """The range that a field's metadata holds."""
    return metadata.get(_KEY)


def argument(kind: type[int] | type[float], metadata: dict[str, Range]) -> Callable[[str], float]:
    """A command's argument, as argparse's `type`: a number of this kind within a range."""
    allowed = metadata[_KEY]

    def read(text: str) -> float:
        with suppress(ValueError):
            if (value := kind(text)) in allowed:
                return value
        what = "a whole number" if kind is int else "a number"
        raise ArgumentTypeError(f"it is {text}; it must be {what}, {allowed}")

    return read


def check_number(value: object, allowed: Range, key: str, nullable: bool) -> None:
    """Raise ValueError where a number, or one of a list, is out of its range; null is in it where it is nullable."""
    if isinstance(value, list):
        for each in value:
            check_number(each, allowed, f"one of {key}", nullable=False)
        return
    if (value is None and nullable) or value in allowed:
        return
    what = f"{allowed.meaning}, " if allowed.meaning else ""
    null = ", or null" if nullable else ""
    shown = written(value) if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)
    raise ValueError(f"{key} is {shown}; it must be {what}{allowed}{null}")


class Ranged:
    """Settings whose numbers are checked when they are made, before whatever else must hold between them.

    Raises:
        ValueError: a number is out of its range.
    """

    # How messages begin that name one of these settings.
    _group: ClassVar[str] = ""

    def __init_subclass__(cls, group: str | None = None) -> None:
        super().__init_subclass__()
        if group is not None:
            cls._group = group

    def __post_init__(self) -> None:
        for each in fields(self):  # pyright: ignore[reportArgumentType]
            allowed = range_of(each.metadata)
            if allowed is not None:
                key = f"{self._group}.{each.name}" if self._group else each.name
                check_number(getattr(self, each.name), allowed, key, is_nullable(each.type))


def is_nullable(annotation: object) -> bool:
    """Whether a field of this type may be null."""
    return type(None) in getattr(annotation, "__args__", ())


def written(value: float) -> str:
    """A number as one would type it: large counts by their power of ten where that is exact."""
    if isinstance(value, float):
        short = f"{value:g}"
        return re.sub(r"e\+?(-?)0*", r"e\1", short if float(short) == value else repr(value))
    digits = str(value)
    zeros = len(digits) - len(digits.rstrip("0"))
    if value and zeros >= 6:
        return f"{digits[:-zeros]}e{zeros}"
    return digits if len(digits) < 25 else f"{digits[:3]}... ({len(digits)} digits)"

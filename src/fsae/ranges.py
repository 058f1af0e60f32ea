"""Ranges: the values that each number among the settings may have, checked in one place.

A number's range is declared with its field, `lr: float = field(default=1e-3, metadata=between(above=0, most=100))`; a
test finds fields without one.
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
    """The values that a number may have. Infinity and NaN are in no range.

    Attributes:
        least, most: the ends.
        open_least, open_most: whether the end itself is excluded.
        meaning: description of the number for messages; "" if its name is clear.
    """

    least: float
    most: float
    open_least: bool = False
    open_most: bool = False
    meaning: str = ""

    def __contains__(self, value: object) -> bool:
        # In Python True is the number 1. Comparisons with NaN are false.
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
    """Return a field's metadata: its range from `least` or `above` to `most` or `below`, each end given once."""
    low, high = (least if above is None else above), (most if below is None else below)
    assert low is not None
    assert high is not None
    assert (least is None) != (above is None)
    assert (most is None) != (below is None)
    return {
        _KEY: Range(least=low, most=high, open_least=least is None, open_most=most is None, meaning=meaning),
    }


# A number of vectors, tokens, steps or the like.
COUNT = between(least=1, most=10**15)
# A number that may be zero.
COUNT_OR_NONE = between(least=0, most=10**15)
SEED = between(least=0, most=2**32 - 1)
# The weight of a loss term or penalty.
WEIGHT = between(least=0, most=1e12)
# A share from 0 to 1 with both ends, without 0, and without both ends.
SHARE = between(least=0, most=1, meaning="a share")
SOME_SHARE = between(above=0, most=1, meaning="a share")
INNER_SHARE = between(above=0, below=1, meaning="a share")
# The weight of the past in a running average.
DECAY = between(least=0, below=1)
# A positive number of any size.
POSITIVE = between(above=0, most=1e9)


def range_of(metadata: Any) -> Range | None:
    """Return the range in a field's metadata."""
    return metadata.get(_KEY)


def argument(kind: type[int] | type[float], metadata: dict[str, Range]) -> Callable[[str], float]:
    """Return a `type` for argparse: a number of this kind within a range."""
    allowed = metadata[_KEY]

    def read(text: str) -> float:
        with suppress(ValueError):
            if (value := kind(text)) in allowed:
                return value
        what = "a whole number" if kind is int else "a number"
        raise ArgumentTypeError(f"it is {text}; it must be {what}, {allowed}")

    return read


def check_number(value: object, allowed: Range, key: str, nullable: bool) -> None:
    """Raise ValueError if a number, or one in a list, is out of its range; null is allowed if `nullable`."""
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
    """Settings whose numbers are checked when they are created, before other checks.

    Raises:
        ValueError: a number is out of its range.
    """

    # The prefix of these settings' names in messages.
    _group: ClassVar[str] = ""

    def __init_subclass__(cls, group: str | None = None) -> None:
        super().__init_subclass__()
        if group is not None:
            cls._group = group

    @classmethod
    def setting(cls, name: str) -> str:
        """Return the name by which a command sets one of these settings, for messages."""
        return f"{cls._group}.{name}" if cls._group else name

    def __post_init__(self) -> None:
        for each in fields(self):  # pyright: ignore[reportArgumentType]
            allowed = range_of(each.metadata)
            if allowed is not None:
                check_number(getattr(self, each.name), allowed, self.setting(each.name), is_nullable(each.type))


def is_nullable(annotation: object) -> bool:
    """Return whether a field of this type may be null."""
    return type(None) in getattr(annotation, "__args__", ())


def written(value: float) -> str:
    """Return a number as one would type it: large round counts with a power of ten."""
    if isinstance(value, float):
        short = f"{value:g}"
        return re.sub(r"e\+?(-?)0*", r"e\1", short if float(short) == value else repr(value))
    digits = str(value)
    zeros = len(digits) - len(digits.rstrip("0"))
    if value and zeros >= 6:
        return f"{digits[:-zeros]}e{zeros}"
    return digits if len(digits) < 25 else f"{digits[:3]}... ({len(digits)} digits)"

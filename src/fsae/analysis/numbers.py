"""Formatting and parsing of numbers for people, and the order of texts that contain numbers."""

import json
import math
import re

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def shown(value: object) -> str:
    """Format a setting's value: "null" for none, and the same text for floats that differ by rounding alone."""
    if value is None or value != value:
        return "null"
    if isinstance(value, float):
        # Every float keeps fifteen digits. Adding zero removes the sign of a negative zero.
        text = f"{value + 0.0:.15g}"
        return str(int(value)) if "e+" in text and abs(value) < 1e16 else _short_exponent(text)
    return str(value)


def readable(value: float, digits: int = 4) -> str:
    """Format a measured number with `digits` digits, and with all digits before its decimal point."""
    text = f"{value + 0.0:.{digits}g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e9 else _short_exponent(text)


def setting_number(text: object) -> int | float | None:
    """Return the number that a setting's text stands for; None for other text, also if it looks like a number, such as
    the name "007"."""
    try:
        value = json.loads(str(text))
    except ValueError:
        return None
    return value if type(value) in (int, float) and json.dumps(value) == text else None


def numbers_in_order(text: str) -> list[tuple[int, float, str]]:
    """Return a sort key of texts that puts "k=9" before "k=10" and "1e-5" before "0.1"."""
    found, place = [], 0
    for match in _NUMBER.finditer(text):
        # A sign belongs to a number only if no word or number ends before it, unlike in "layer-5".
        signed = match[0][0] in "+-" and match.start() > 0 and text[match.start() - 1].isalnum()
        begin = match.start() + signed
        found += [(1, 0.0, text[place:begin]), (0, float(text[begin : match.end()]), "")]
        place = match.end()
    return [*found, (1, 0.0, text[place:])]


def _short_exponent(text: str) -> str:
    """Shorten Python's 1e-05 to 1e-5."""
    mantissa, mark, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if mark and math.isfinite(float(text)) else text

"""Numbers as people write and read them, and the order of texts that hold some."""

import json
import math
import re

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def shown(value: object) -> str:
    """A setting's value as a person writes it: "null" for none, and one text for floats that only rounding parts."""
    if value is None or value != value:
        return "null"
    if isinstance(value, float):
        # Fifteen digits are what every float keeps. Adding zero makes a negative zero an ordinary one.
        text = f"{value + 0.0:.15g}"
        return str(int(value)) if "e+" in text and abs(value) < 1e16 else _short_exponent(text)
    return str(value)


def readable(value: float, digits: int = 4) -> str:
    """A measured number with so many digits, and with all of those before its decimal point."""
    text = f"{value + 0.0:.{digits}g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e9 else _short_exponent(text)


def setting_number(text: object) -> int | float | None:
    """The number that a setting's text stands for; None where it is no number or was a text that only looks like one,
    such as the name "007"."""
    try:
        value = json.loads(str(text))
    except ValueError:
        return None
    return value if type(value) in (int, float) and json.dumps(value) == text else None


def numbers_in_order(text: str) -> list[tuple[int, float, str]]:
    """What to sort texts by so that "k=9" comes before "k=10" and "1e-5" before "0.1"."""
    found, place = [], 0
    for match in _NUMBER.finditer(text):
        # A sign belongs to a number only where no word or number ends before it, as one does in "layer-5".
        signed = match[0][0] in "+-" and match.start() > 0 and text[match.start() - 1].isalnum()
        begin = match.start() + signed
        found += [(1, 0.0, text[place:begin]), (0, float(text[begin : match.end()]), "")]
        place = match.end()
    return [*found, (1, 0.0, text[place:])]


def _short_exponent(text: str) -> str:
    """1e-5, where Python writes 1e-05."""
    mantissa, mark, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if mark and math.isfinite(float(text)) else text

"""Values as people write them: whole numbers also as 1e6, switches as true and false alone."""

import math
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError
from omegaconf.nodes import BooleanNode, FloatNode, IntegerNode

from fsae.ranges import written

_ZEROS = {"k": 3, "m": 6, "g": 9, "b": 9}


class WholeNumber(IntegerNode):
    """A node for a whole number, which may be written as 250_000, 2.5e5 or 1e6."""

    def _validate_and_convert_impl(self, value: Any) -> int:
        found = value
        if isinstance(value, str):
            # An environment variable's, or one in quotes.
            try:
                found = int(value)
            except ValueError:
                found = _float_of(value)
        if isinstance(found, float) and math.isfinite(found) and found.is_integer():
            return int(found)
        if isinstance(found, int) and not isinstance(found, bool):
            return found
        raise ValidationError(f"{value!r} is not a whole number; {_hint(value)}")

    def __deepcopy__(self, memo: dict[int, Any]) -> "WholeNumber":
        copied = WholeNumber()
        self._deepcopy_impl(copied, memo)
        return copied


class Switch(BooleanNode):
    """A node for true or false: no number stands for either."""

    def _validate_and_convert_impl(self, value: Any) -> bool:
        if (isinstance(value, int | float) and not isinstance(value, bool)) or str(value).isdecimal():
            raise ValidationError(f"{value!r} is neither true nor false")
        return super()._validate_and_convert_impl(value)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Switch":
        copied = Switch()
        self._deepcopy_impl(copied, memo)
        return copied


class Number(FloatNode):
    """A node for a number: one that has too many digits is told as such."""

    def _validate_and_convert_impl(self, value: Any) -> float:
        try:
            return super()._validate_and_convert_impl(value)
        except OverflowError:
            raise ValidationError(f"{written(value)} is too large for a number") from None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Number":
        copied = Number()
        self._deepcopy_impl(copied, memo)
        return copied


_OURS: dict[type, type[WholeNumber | Switch | Number]] = {
    IntegerNode: WholeNumber,
    BooleanNode: Switch,
    FloatNode: Number,
}


def lenient_node(schema: type) -> DictConfig:
    """A node of a frozen dataclass that reads values as people write them, and that YAML and overrides may change.

    OmegaConf makes nodes of frozen dataclasses read-only.
    """
    node = OmegaConf.structured(schema)
    _open(node)
    return node


def _open(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for key in node:
        child: Any = node._get_node(key)
        if isinstance(child, DictConfig):
            _open(child)
        elif (kind := _OURS.get(type(child))) is not None:
            content: Any = node._content
            content[key] = kind(value=child._value(), key=key, parent=node, is_optional=child._is_optional())


def _float_of(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _hint(value: object) -> str:
    """How the number is written that was meant, as far as can be guessed."""
    meant = re.fullmatch(r"\s*([\d._]+)\s*([kKmMgGbB])\s*", value) if isinstance(value, str) else None
    if meant is None:
        return "write digits, as in 250_000 or 1e6"
    return f"write {meant[1]}e{_ZEROS[meant[2].lower()]}"

"""Config nodes that read values as people write them: whole numbers also as 1e6, switches only as true and false."""

import math
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError
from omegaconf.nodes import BooleanNode, FloatNode, IntegerNode

from fsae.ranges import written

_ZEROS = {"k": 3, "m": 6, "g": 9, "b": 9}


class _CopiedByType:
    """A node whose copy has its own type: OmegaConf's nodes copy themselves as the type they are derived from."""

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        copied = type(self)()
        self._deepcopy_impl(copied, memo)
        return copied


class WholeNumber(_CopiedByType, IntegerNode):
    """A node for a whole number, which may be written as 250_000, 2.5e5 or 1e6."""

    def _validate_and_convert_impl(self, value: Any) -> int:
        found = value
        if isinstance(value, str):
            # The value of an environment variable, or a value in quotes.
            try:
                found = int(value)
            except ValueError:
                found = _float_of(value)
        if isinstance(found, float) and math.isfinite(found) and found.is_integer():
            return int(found)
        if isinstance(found, int) and not isinstance(found, bool):
            return found
        raise ValidationError(f"{value!r} is not a whole number; {_hint(value)}")


class Switch(_CopiedByType, BooleanNode):
    """A node for true or false; numbers are refused."""

    def _validate_and_convert_impl(self, value: Any) -> bool:
        if (isinstance(value, int | float) and not isinstance(value, bool)) or str(value).isdecimal():
            raise ValidationError(f"{value!r} is neither true nor false")
        return super()._validate_and_convert_impl(value)


class Number(_CopiedByType, FloatNode):
    """A node for a number; a number with too many digits gets a message of its own."""

    def _validate_and_convert_impl(self, value: Any) -> float:
        try:
            return super()._validate_and_convert_impl(value)
        except OverflowError:
            raise ValidationError(f"{written(value)} is too large for a number") from None


_OURS: dict[type, type[WholeNumber | Switch | Number]] = {
    IntegerNode: WholeNumber,
    BooleanNode: Switch,
    FloatNode: Number,
}


def lenient_node(schema: type) -> DictConfig:
    """Return a node of a frozen dataclass, with nodes that read values as people write them.

    YAML and overrides may change it: OmegaConf alone makes nodes of frozen dataclasses read-only.
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
    """Return how to write the number that was probably meant."""
    meant = re.fullmatch(r"\s*([\d._]+)\s*([kKmMgGbB])\s*", value) if isinstance(value, str) else None
    if meant is None:
        return "write digits, as in 250_000 or 1e6"
    return f"write {meant[1]}e{_ZEROS[meant[2].lower()]}"

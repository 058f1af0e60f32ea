"""Choices from other distributions: entry points of the group `fsae`, such as `arch.mine = "my_package:MySettings"`."""

from collections.abc import Collection, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

GROUP = "fsae"

Settings = TypeVar("Settings")


def with_outside(group: str, own: Mapping[str, type[Settings]], base: type[Settings]) -> dict[str, type[Settings]]:
    """Return the choices of a group: those of this package, and those that installed distributions add.

    Args:
        group: the first part of an entry point's name: "arch", "loss", "source", "trainer", "eval".
        own: choices of this package, by name.
        base: base class of the group's settings.

    Raises:
        ValueError: a distribution's choice cannot be imported, is of the wrong type, or has the name of another choice.
    """
    found = dict(own)
    makers = dict.fromkeys(own, "fsae itself")
    for each in _entry_points():
        of_group, _, name = each.name.partition(".")
        if of_group != group:
            continue
        maker = each.dist.name if each.dist is not None else each.value
        if name in found:
            raise ValueError(
                f"the distribution {maker} adds {group}={name}, a name that {makers[name]} has already; uninstall "
                f"{maker}, or rename its entry point"
            )
        try:
            settings = each.load()
        except Exception as error:
            raise ValueError(
                f"the distribution {maker} adds {group}={name}, but {each.value} cannot be imported "
                f"({type(error).__name__}: {error}); repair or uninstall {maker}"
            ) from error
        if not isinstance(settings, type) or not issubclass(settings, base):
            raise ValueError(
                f"the distribution {maker} adds {group}={name}, but {each.value} is no subclass of {base.__name__}; "
                f"repair or uninstall {maker}"
            )
        found[name], makers[name] = settings, maker
    return found


def check_groups(groups: Collection[str]) -> None:
    """Check that every entry point names one of these groups: one of another group would have no effect.

    Raises:
        ValueError: a distribution has another one.
    """
    for each in _entry_points():
        group, _, name = each.name.partition(".")
        if group in groups and name:
            continue
        maker = each.dist.name if each.dist is not None else each.value
        kinds = ", ".join(f"{known}.NAME" for known in sorted(groups))
        raise ValueError(
            f"the distribution {maker} has the entry point {each.name}, which names no choice of fsae; an entry point "
            f"is one of {kinds}; rename it, or uninstall {maker}"
        )


@cache
def _entry_points() -> list[EntryPoint]:
    """Return the entry points in the order of their names, each once: a folder may be on the path twice."""
    return sorted(set(entry_points(group=GROUP)), key=lambda each: (each.name, each.value))

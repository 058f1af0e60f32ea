"""Every number among the settings has a range, which excludes absurd values."""

import dataclasses
import math
import typing
from argparse import ArgumentTypeError
from collections.abc import Iterator
from typing import Any

import pytest
from omegaconf import OmegaConf

from fsae.configuration.schema import RunSettings, schemas, settings_of
from fsae.ranges import COUNT, Range, argument, check_number, is_nullable, range_of
from fsae.training.settings import AdamSettings
from tests.composition import composed


def numbers(kind: type) -> Iterator[tuple[str, Any]]:
    """The numeric fields of settings and of the settings within them: their names, and the fields."""
    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        of = set(typing.get_args(hints[each.name]) or [hints[each.name]])
        if of & {int, float}:
            yield f"{kind.__name__}.{each.name}", each
        for nested in of:
            if dataclasses.is_dataclass(nested) and kind is not RunSettings:
                yield from numbers(typing.cast(type, nested))


ALL = dict(found for kind in [RunSettings, *schemas().values()] for found in numbers(kind))


def test_the_walk_finds_nested_numbers():
    assert {
        "RunSettings.seed",
        "AdamSettings.lr",
        "Mutual.weight",
        "Fisher.warm_up",
        "DatasetSettings.context",
    } <= ALL.keys()


@pytest.mark.parametrize("name", list(ALL))
def test_every_number_has_a_range_with_its_default_and_without_absurd_values(name: str):
    field = ALL[name]
    allowed = range_of(field.metadata)
    assert allowed is not None, f"{name} has no range; give its field a metadata from fsae.ranges"
    nullable = is_nullable(field.type)
    # Minus one makes sense in decibels alone.
    absurd = [math.nan, math.inf, -math.inf, 1e300, 10**300, True, False, "1", *([-1] if allowed.least >= 0 else [])]
    for value in [*absurd, *([] if nullable else [None])]:
        with pytest.raises(ValueError, match=r"^a key is "):
            check_number(value, allowed, "a key", nullable)
    # The range contains zero only if its ends do.
    assert (0 in allowed) == (allowed.least < 0 or (allowed.least == 0 and not allowed.open_least))
    if field.default is not dataclasses.MISSING:
        check_number(field.default, allowed, "a key", nullable)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "shown"),
    [
        (Range(least=1, most=10**15), [1, 10**15], [0, 10**15 + 1], "at least 1 and at most 1e15"),
        (Range(least=0, most=1, open_least=True), [1e-9, 1], [0, 1.1], "above 0 and at most 1"),
        (Range(least=0, most=1, open_most=True), [0, 0.999], [1, -1e-9], "at least 0 and below 1"),
    ],
)
def test_a_range_contains_its_ends_unless_they_are_open(allowed: Range, inside: list, outside: list, shown: str):
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)
    assert str(allowed) == shown


def test_settings_are_checked_when_they_are_created():
    with pytest.raises(ValueError, match=r"^trainer\.lr is nan; it must be above 0 and at most 1e30$"):
        AdamSettings(lr=math.nan)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # The error names the typed key: source.seed takes its value from seed, and a term does not know its own name.
        ("seed=-1", "seed is -1; it must be at least 0"),
        ("source.seed=-1", "source.seed is -1"),
        ("loss.penalty.weight=nan", "loss.penalty.weight is nan; it must be at least 0 and at most 1e12"),
        ("loss.penalty.weight=1e300", "loss.penalty.weight is 1e300;"),
        ("loss.sparsity.warm_up=2", "loss.sparsity.warm_up is 2; it must be a share, at least 0 and at most 1"),
        ("loss.sparsity.warm_up=1.00000001", "loss.sparsity.warm_up is 1.00000001; it"),
        ("trainer.lr=1e9999", "trainer.lr is inf; it must be above 0"),
        ("population.mutual.match_every=0", "population.mutual.match_every is 0; it must be at least 1"),
        ("population.reinitialise.power=inf", "population.reinitialise.power is inf"),
        ("arch.expansion=inf", "arch.expansion is inf; it must be above 0 and at most 65536"),
        ("tracking.flush_seconds=inf", "tracking.flush_seconds is inf"),
        ("source.tokens=1e20", "source.tokens is 1e20; it must be at least 1 and at most 1e15, or null"),
        ("trainer.batch_size=0", "trainer.batch_size is 0"),
        ("dataset.context=1", "dataset.context is 1; it must be a number of tokens, at least 2"),
        ("dataset.exclude_tokens=[3,-1]", "one of dataset.exclude_tokens is -1; it must be a token id, at least 0"),
        ("eval.vectors.batch_size=1", "eval.vectors.batch_size is 1; it must be"),
    ],
)
def test_the_error_for_a_number_out_of_range_names_the_typed_key(override: str, message: str):
    with pytest.raises(ValueError, match=f"^{message.replace('+', '.')}"):
        settings_of(composed(override))


@pytest.mark.parametrize(
    ("written", "tokens"),
    [("1e6", 10**6), ("250_000", 250_000), ("2.5e5", 250_000), ("'1e6'", 10**6), ("1000.0", 1000)],
)
def test_counts_may_be_written_with_a_power_of_ten(written: str, tokens: int):
    settings = settings_of(composed(f"trainer.samples={written}", "trainer.batch_size=100"))
    assert settings.trainer.samples == tokens
    assert type(settings.trainer.samples) is int


def test_an_environment_variable_may_be_a_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKENS", "3e5")
    config = composed("trainer.samples=${oc.env:TOKENS}")
    assert settings_of(config).trainer.samples == 300_000
    assert "samples: 300000" in OmegaConf.to_yaml(config.trainer, resolve=True)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "nan", "inf", "many", "1e300"])
def test_argument_refuses_a_number_out_of_range(text: str):
    with pytest.raises(
        ArgumentTypeError, match=f"^it is {text}; it must be a whole number, at least 1 and at most 1e15"
    ):
        argument(int, COUNT)(text)
    assert argument(int, COUNT)("7") == 7
    assert argument(float, COUNT)("1.5") == 1.5

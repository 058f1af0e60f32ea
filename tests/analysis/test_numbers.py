import pytest

from fsae.analysis.numbers import numbers_in_order, readable, setting_number, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.001, "0.001"),
        (0.3, "0.3"),
        (1.15, "1.15"),
        # A sum of tenths is shown as the same setting.
        (0.1 + 0.2, "0.3"),
        (1.0, "1"),
        (-2.5, "-2.5"),
        (-0.0, "0"),
        (1e-5, "1e-5"),
        (1e-12, "1e-12"),
        (5e8, "500000000"),
        (1e15, "1000000000000000"),
        (1e20, "1e20"),
        # pandas turns seeds into floats if one run has none.
        (12345678901.0, "12345678901"),
        (12345678902.0, "12345678902"),
        (0.123456789012, "0.123456789012"),
        (3, "3"),
        (True, "True"),
        (None, "null"),
        (float("nan"), "null"),
        (float("inf"), "inf"),
        ("a_b$c", "a_b$c"),
    ],
)
def test_shown_formats_settings_as_people_write_them(value: object, text: str):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (12.3456, "12.35"),
        (65536.0, "65536"),
        (-12345.6, "-12346"),
        (1.5e-5, "1.5e-5"),
        (-0.0, "0"),
        (2.5e12, "2.5e12"),
        (float("nan"), "nan"),
    ],
)
def test_readable_rounds_measured_numbers(value: float, text: str):
    assert readable(value) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8", 8),
        ("0.5", 0.5),
        ("1e-05", 1e-5),
        ("-1", -1),
        ("-0.0", 0.0),
        ("Infinity", float("inf")),
        ("007", None),
        ("1e5", None),
        ("true", None),
        ("1, 2", None),
        ("", None),
    ],
)
def test_setting_number_reads_only_numbers(text: str, number: float | None):
    assert setting_number(text) == number


def test_numbers_in_texts_are_sorted_as_numbers():
    ordered = ["a", "k=9", "k=10", "layer-5", "layer-10", "θ = -1", "θ = 0", "θ = 1e-5", "θ = 0.01", "θ = 0.01, d=9"]
    ordered += ["θ = 0.01, d=10"]
    assert sorted(ordered[5:] + ordered[:5], key=numbers_in_order) == ordered

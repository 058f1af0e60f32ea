import json
import math

import pytest

from fsae.evaluation.results import MEANINGS, flat_results, results_table


def test_table_is_aligned_and_in_order():
    table = results_table({"l0": 63.98765, "fvu": 0.123456, "code_correlation_excess": -1.5e-05})
    assert table.splitlines() == [
        "fvu                        0.1235  fraction of variance unexplained",
        "l0                          63.99  active latents a sample",
        "code_correlation_excess  -1.5e-05  the same less its value by chance",
    ]


def test_table_shows_what_is_not_finite():
    assert "nan" in results_table({"fvu": math.nan})


def test_flat_names():
    assert flat_results({"fvu": 0.25, "l0": 3.0}) == {"eval/fvu": 0.25, "eval/l0": 3.0}


@pytest.mark.parametrize(("value", "note"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_what_is_not_finite_is_null_with_a_note(value, note):
    results = flat_results({"fvu": value, "l0": 3.0})
    assert results == {"eval/fvu": None, "eval/l0": 3.0, "notes": {"eval/fvu": f"not finite: {note}"}}
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_meanings_fit_a_terminal():
    table = results_table(dict.fromkeys(MEANINGS, -1.234e-05))
    assert max(map(len, table.splitlines())) <= 100

"""What `results.json` holds: numbers, what they mean, and what replaces what."""

import json
import math
from pathlib import Path

import pytest

from fsae.outputs.results import (
    Better,
    Meaning,
    Shown,
    accompanied,
    flat_results,
    in_order,
    meaning_of,
    meanings_in,
    merged,
    read_results,
    results_table,
)

FVU = Meaning("fraction of variance unexplained", better=Better.less, shown=Shown.first)
BITS = Meaning("size of a sample's codes", unit="bits")
MSE = Meaning("squared error", better=Better.less, shown=Shown.files)


def test_table_is_aligned_in_the_order_of_tables_and_has_units():
    table = results_table({"mse": 63.98765, "fvu": 0.123456, "bits": 1.5e-05}, {"mse": MSE, "bits": BITS, "fvu": FVU})
    assert table.splitlines() == [
        "fvu    0.1235  fraction of variance unexplained",
        "bits  1.5e-05  size of a sample's codes [bits]",
        "mse     63.99  squared error",
    ]


def test_table_shows_a_number_that_is_not_finite():
    assert "nan" in results_table({"fvu": math.nan}, {"fvu": FVU})


def test_a_meaning_survives_json():
    assert [meaning_of(json.loads(json.dumps(each.as_json()))) for each in (FVU, BITS, MSE)] == [FVU, BITS, MSE]


def test_results_have_flat_names_and_meanings():
    results = flat_results({"fvu": 0.25, "0/fvu": 0.25}, {"fvu": FVU})
    assert results == {"eval/fvu": 0.25, "eval/0/fvu": 0.25, "meanings": {"eval/fvu": FVU.as_json()}}
    assert meanings_in(results) == {"eval/fvu": FVU}


@pytest.mark.parametrize(("value", "note"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_number_that_is_not_finite_is_null_with_a_note(value: float, note: str):
    results = flat_results({"fvu": value, "l0": 3.0})
    assert results == {"eval/fvu": None, "eval/l0": 3.0, "notes": {"eval/fvu": f"not finite: {note}"}}
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_merged_results_keep_the_numbers_that_were_not_measured_again():
    earlier = flat_results({"fvu": math.nan, "bits": math.inf}, {"fvu": FVU, "bits": BITS}) | {"data/skipped_rows": 0}
    both = merged(earlier, flat_results({"fvu": 0.5, "mse": 2.0}, {"fvu": FVU, "mse": MSE}))
    assert {name: value for name, value in both.items() if name not in ("notes", "meanings")} == {
        "eval/fvu": 0.5, "eval/bits": None, "eval/mse": 2.0, "data/skipped_rows": 0,
    }  # fmt: skip
    assert both["notes"] == {"eval/bits": "not finite: inf"}
    assert in_order(meanings_in(both)) == ["eval/fvu", "eval/bits", "eval/mse"]
    assert "notes" not in merged(both, flat_results({"bits": 1.0}))


def test_a_damaged_file_is_named(tmp_path: Path):
    assert read_results(tmp_path / "results.json") == {}
    (tmp_path / "results.json").write_text('{"eval/fvu": ')
    with pytest.raises(
        ValueError,
        match=r"results\.json does .* cut off: delete it, and evaluate the run again, as in python -m fsae\.evaluate /",
    ):
        read_results(tmp_path / "results.json")


def test_a_number_is_accompanied_by_its_noise_and_its_controls():
    found = accompanied("auc", Meaning("AUC", better=Better.more), {"random": "random directions"})
    assert list(found) == ["auc", "auc_noise", "auc_random"]
    assert (found["auc_noise"].noise_of, found["auc_random"].control_of) == ("auc", "auc")
    assert found["auc_random"].text == "auc of random directions"
    assert [each.shown for each in found.values()] == [Shown.table, Shown.files, Shown.files]
    assert [meaning_of(each.as_json()) for each in found.values()] == list(found.values())


def test_the_table_has_noise_and_controls_next_to_their_number():
    meanings = accompanied("auc", Meaning("AUC", better=Better.more), {"random": "random directions"})
    table = results_table({"auc_random": 0.5, "auc_noise": 0.0123, "auc": 0.8765, "fvu": 0.25}, {"fvu": FVU} | meanings)
    assert table.splitlines() == [
        "fvu            0.25  fraction of variance unexplained",
        "auc  0.8765 ± 0.012  AUC (random 0.5)",
    ]

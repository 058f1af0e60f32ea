"""Which entries exist, row after row and column after column."""

import pytest
import torch

from fsae.sparse.pattern import Pattern
from tests.sparse.matrices import CASES, draw, mask_with


def test_pattern_of_mask_by_hand():
    pattern = Pattern.of_mask(torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]]).bool())
    # Row 0 holds columns 1 and 2, row 1 none, row 2 columns 0 and 2: rows begin at entries 0, 2, 2 and end at 4.
    assert pattern.columns.tolist() == [1, 2, 0, 2]
    assert pattern.offsets.tolist() == [0, 2, 2, 4]
    assert pattern.rows.tolist() == [0, 0, 2, 2]
    assert (pattern.batch, pattern.width) == (3, 3)
    order, transposed = pattern.transposed
    # Column 0 has entry 2 (row 2), column 1 entry 0 (row 0), column 2 entries 1 and 3 (rows 0 and 2).
    assert order.tolist() == [2, 0, 1, 3]
    assert transposed.columns.tolist() == [2, 0, 0, 2]
    assert transposed.offsets.tolist() == [0, 1, 2, 4]
    assert transposed.rows.tolist() == [0, 1, 2, 2]
    assert (transposed.batch, transposed.width) == (3, 3)


def test_values_are_padded_by_hand():
    pattern = Pattern.of_mask(torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]]).bool())
    assert pattern.padded(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [[1, 2], [0, 0], [3, 4]]
    assert Pattern.of_mask(torch.zeros(2, 3, dtype=torch.bool)).padded(torch.zeros(0)).tolist() == [[0], [0]]


def test_rows_from_offsets_are_those_of_the_mask():
    for case in CASES:
        pattern = Pattern.of_mask(mask_with(case))
        assert Pattern(pattern.columns, pattern.offsets, pattern.width).rows.tolist() == pattern.rows.tolist()


def test_patterns_one_under_the_other():
    mask = mask_with("empty row")
    pattern = Pattern.stacked([Pattern.of_mask(part) for part in mask.split(2)])
    whole = Pattern.of_mask(mask)
    for name in ("columns", "offsets", "rows"):
        assert torch.equal(getattr(pattern, name), getattr(whole, name)), name
    assert (pattern.batch, pattern.width) == (whole.batch, whole.width)


@pytest.mark.parametrize("width", [7, 8, 24])
def test_a_mask_that_is_a_part_of_another(width: int):
    mask = draw(9, width) > 0.5
    part = Pattern.of_mask(mask[1:])
    assert torch.equal(torch.stack([part.rows, part.columns], 1), mask[1:].nonzero())

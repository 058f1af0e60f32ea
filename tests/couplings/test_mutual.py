"""Mean maximum cosine similarity and its matchings."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fsae.couplings.mutual import Mutual
from fsae.matching import Matching, assignment, mmcs

each_matching = pytest.mark.parametrize("matching", list(Matching), ids=lambda matching: matching.name)


def dictionary(rows: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_matching
def test_a_dictionary_is_like_itself_in_any_order_and_length(matching: Matching):
    A = dictionary(9, 5)
    other = (A * torch.arange(1, 10).unsqueeze(1))[torch.randperm(9, generator=torch.Generator().manual_seed(1))]
    assert mmcs(A, other, matching) == pytest.approx(1, abs=1e-12)


@each_matching
def test_no_order_of_rows_matters(matching: Matching):
    A, B = dictionary(9, 5), dictionary(9, 5, seed=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    assert mmcs(A[order], B, matching) == pytest.approx(mmcs(A, B, matching), abs=1e-12)
    assert mmcs(A, B[order], matching) == pytest.approx(mmcs(A, B, matching), abs=1e-12)


def test_all_agree_on_orthogonal_dictionaries():
    # Each row of B is 0.6 of its own row of A and 0.8 of something orthogonal to all of A.
    A = torch.eye(4, 8, dtype=torch.float64)
    B = 0.6 * A + 0.8 * torch.eye(8, dtype=torch.float64)[4:]
    for matching in Matching:
        assert mmcs(A, B, matching) == pytest.approx(0.6, abs=1e-12)


def test_by_hand():
    # Cosines of rows: (1, 0.6), (0, 0.8): one to one that is 1 and 0.8; nearest of the second row of A is 0.8 too, and
    # of B's rows 1 and 0.8.
    A, B = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert mmcs(A, B, Matching.hungarian) == pytest.approx(0.9)
    assert mmcs(A, B, Matching.mean_max) == pytest.approx(0.9)
    # Both rows of C are nearest to the first row of A (0.8, 0.96); one to one the first has to take the second (0.6).
    C = torch.tensor([[0.8, 0.6], [0.96, 0.28]])
    assert mmcs(C, A, Matching.mean_max) == pytest.approx((0.8 + 0.96) / 2)
    assert mmcs(C, A, Matching.hungarian) == pytest.approx((0.6 + 0.96) / 2)
    assert mmcs(C, A, Matching.symmetric) == pytest.approx(((0.8 + 0.96) / 2 + (0.96 + 0.6) / 2) / 2)


def test_the_smaller_side_is_matched_whole():
    rows, columns = assignment(torch.tensor([[0.1, 0.9, 0.2], [0.3, 0.8, 0.1]]))
    # 0.9 and 0.3 are more than 0.1 or 0.2 and 0.8.
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])


@pytest.mark.parametrize(("name", "value"), [("weight", -1.0), ("warm_up", 1.5), ("match_every", 0)])
def test_refuses_settings_out_of_range(name: str, value: Any):
    with pytest.raises(ValueError, match=rf"population\.mutual\.{name} is {value:g}"):
        Mutual(**{name: value})


def test_weight_rises_from_zero():
    mutual = Mutual(weight=2.0, warm_up=0.5)
    assert [mutual.weight_at(progress) for progress in (0, 0.25, 0.5, 1)] == [0, 1, 2, 2]
    assert Mutual(weight=2.0).weight_at(0) == 2

"""Agreement of members, computed by hand."""

import pytest
import torch

from fsae.evaluation.agreement import agreement


def test_by_hand():
    # The second member has the first one's rows 0 and 1 (one of them reversed), and a third row at cosine 0.6 to
    # its row 2. The third member has row 0, and two rows that no other member has.
    one = torch.eye(3, 8)
    two = torch.stack([-2 * one[1], 3 * one[0], 0.6 * one[2] + 0.8 * torch.eye(8)[5]])
    three = torch.stack([one[0], torch.eye(8)[6], torch.eye(8)[7]])
    compared = agreement([one, two, three], [torch.ones(3, dtype=torch.bool)] * 3)
    # Pairs: (1 + 1 + 0.6) / 3, then (1 + 0 + 0) / 3 twice.
    assert compared.scalars["pw_mcc"] == pytest.approx((2.6 / 3 + 1 / 3 + 1 / 3) / 3)
    # Nearest with its sign: from one to two 1, 0, 0.6; back 0, 1, 0.6; to three and back 1, 0, 0 each.
    assert compared.scalars["mmcs"] == pytest.approx((1.6 / 3 * 2 + 1 / 3 * 4) / 6)
    assert compared.found_by.tolist() == [[3, 2, 1], [2, 3, 1], [3, 1, 1]]
    assert compared.scalars["shared_share"] == pytest.approx(3 / 9)
    assert compared.closest[0].tolist() == pytest.approx([1, 1, 0.6])


def test_a_latent_that_never_fires_is_not_shared():
    rows = torch.eye(3)
    compared = agreement([rows, rows], [torch.tensor([True, False, True]), torch.tensor([True, True, False])])
    assert compared.found_by.tolist() == [[2, 0, 1], [2, 1, 0]]
    assert compared.closest.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert compared.scalars == pytest.approx({"pw_mcc": 1, "mmcs": 1, "shared_share": 2 / 4})


def test_it_can_be_stopped_before_each_pair():
    beats: list[str] = []
    agreement([torch.eye(2)] * 4, [torch.ones(2, dtype=torch.bool)] * 4, lambda: beats.append("beat"))
    assert len(beats) == 6


def test_a_member_and_itself():
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    compared = agreement([rows, rows.flip(0)], [torch.ones(6, dtype=torch.bool)] * 2)
    assert compared.scalars == pytest.approx({"pw_mcc": 1, "mmcs": 1, "shared_share": 1})

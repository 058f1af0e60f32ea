"""What sources have in common."""

import pytest
import torch

from fsae.sources.source import in_batches


@pytest.mark.parametrize("parts", [[10], [3, 7], [1, 1, 8], [4, 4, 2], [4, 0, 6]])
def test_parts_of_any_size_come_in_batches_of_one_size(parts: list[int]):
    vectors = torch.arange(20.0).view(10, 2)
    batches = list(in_batches(vectors.split(parts), 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), vectors)


def test_whole_batches_leave_no_rest():
    assert [len(batch) for batch in in_batches([torch.zeros(8, 1)], 4)] == [4, 4]
    assert list(in_batches([], 4)) == []

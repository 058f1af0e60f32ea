"""Vectors in memory: every one once an epoch, in an order that seed and epoch decide, from any position on."""

from itertools import islice

import pytest
import torch

from fsae.sources.in_memory import InMemorySource
from tests.sources.positions import check_goes_on

CPU = torch.device("cpu")


def source(seed: int = 0) -> InMemorySource:
    vectors = torch.arange(20.0).view(10, 2)
    return InMemorySource(vectors, -vectors[:5], seed, CPU)


def first(source: InMemorySource, batches: int, size: int = 3) -> list[list[float]]:
    return [batch.inputs[:, 0].tolist() for batch in islice(source.batches(size), batches)]


def test_each_epoch_has_a_vector_at_most_once_in_an_order_of_its_own():
    batches = first(source(), 6)
    # Three whole batches of the ten vectors, one of which is left out.
    for epoch in (batches[:3], batches[3:]):
        assert len({value for batch in epoch for value in batch}) == 9
    assert batches[:3] != batches[3:]


def test_the_seed_decides_the_order():
    assert first(source(1), 3) == first(source(1), 3) != first(source(2), 3)


@pytest.mark.parametrize("before", [2, 3, 4])
def test_a_resumed_stream_continues_at_its_position(before: int):
    check_goes_on(source, 3, before)


def test_the_held_out_part_is_always_the_same():
    for _ in range(2):
        batches = [batch.inputs[:, 0].tolist() for batch in source().held_out(4, 3)]
        assert batches == [[0.0, -2.0, -4.0], [-6.0]]


def test_a_batch_larger_than_the_training_part_is_refused():
    with pytest.raises(ValueError, match=r"trainer.batch_size is 11, more than the 10 training samples; lower it"):
        first(source(), 1, size=11)

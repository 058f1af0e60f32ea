"""The counts of samples since latents fired."""

import torch

from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern
from fsae.training.dead_latents import DeadLatents


def test_counters_count_samples_not_steps():
    dead = DeadLatents(3, after=10)
    # Latent 0 fires always, 1 never, 2 in the second batch.
    first = torch.tensor([[1.0, 0.0, 0.0]]).repeat(4, 1)
    second = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, -2.0]])
    dead.update(Codes(first))
    assert dead.samples_since_fired.tolist() == [0, 4, 4]
    dead.update(Codes(second))
    assert dead.samples_since_fired.tolist() == [0, 6, 0]
    dead.update(Codes(first))
    assert dead.samples_since_fired.tolist() == [0, 10, 4]
    assert dead.indices.tolist() == []
    dead.refresh()
    assert dead.indices.tolist() == [1]


def test_a_stored_zero_does_not_count_as_firing():
    dead = DeadLatents(3, after=1)
    codes = Codes(torch.tensor([0.5, 0.0]), Pattern.of_indices(torch.tensor([[0, 1]]), 3))
    dead.update(codes)
    assert dead.samples_since_fired.tolist() == [0, 1, 1]

"""Contributions of heads and source positions to pre-activations."""

import pytest
import torch

from fsae.autoencoders.record import AffineMap
from fsae.evaluation.causal.direct_attribution import HeadMap, contributions, pairs_at_once
from fsae.language_models.attention import Attention

# One row of two positions, two heads of one dimension each.
ATTENTION = Attention(
    pattern=torch.tensor([[[[1.0, 0.0], [0.25, 0.75]], [[1.0, 0.0], [0.5, 0.5]]]]),
    values=torch.tensor([[[[2.0], [3.0]], [[4.0], [-1.0]]]]),
)
SAME = HeadMap(torch.eye(2), torch.zeros(2))


def pair(latent: int, position: int = 1) -> tuple[torch.Tensor, ...]:
    return torch.tensor([0]), torch.tensor([position]), torch.tensor([latent])


def test_by_hand():
    encoder = AffineMap(torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [10.0, 5.0]]), torch.tensor([0.5, 7.0]))
    found = contributions(ATTENTION, SAME, encoder, *pair(0))
    # Head 0: 0.25 * 2 * 1 and 0.75 * 4 * 1; head 1: 0.5 * 3 * 10 and 0.5 * -1 * 10.
    assert found.by_source[0].tolist() == [[0.5, 3.0], [15.0, -5.0]]
    assert found.constant.tolist() == [0.5]
    # Latent 1 does not read head 0.
    assert contributions(ATTENTION, SAME, encoder, *pair(1)).by_source[0].tolist() == [[0.0, 0.0], [7.5, -2.5]]
    # The first position sees itself alone.
    assert contributions(ATTENTION, SAME, encoder, *pair(0, 0)).by_source[0].tolist() == [[2.0, 0.0], [30.0, 0.0]]


@pytest.mark.parametrize(
    "heads", [SAME, HeadMap(torch.tensor([[1.0, 2, 0], [0, 1, -1]]), torch.tensor([0.1, 0.2, 0.3]))]
)
def test_contributions_and_the_constant_sum_to_the_pre_activation(heads: HeadMap):
    d_in = heads.matrix.shape[1]
    generator = torch.Generator().manual_seed(0)
    directions, centre = torch.randn(d_in, 3, generator=generator), torch.randn(d_in, generator=generator)
    scale, bias = torch.tensor([1.0, 2, 3]), torch.tensor([0.1, 0.2, 0.3])
    x = ATTENTION.outputs().flatten(2) @ heads.matrix + heads.rest
    encoder = AffineMap(x[0], directions, bias, scale=scale, centre=centre)
    positions, latents = torch.tensor([0, 1, 1, 1]), torch.tensor([2, 0, 1, 2])
    found = contributions(ATTENTION, heads, encoder, torch.zeros(4, dtype=torch.long), positions, latents)
    pre = encoder.dense()[positions, latents]
    torch.testing.assert_close(found.by_source.sum((1, 2)) + found.constant, pre)


def test_pairs_at_once_follow_from_the_entries():
    # Two heads and two source positions are four contributions per pair.
    assert pairs_at_once(ATTENTION, 10) == 2
    assert pairs_at_once(ATTENTION, 1) == 1

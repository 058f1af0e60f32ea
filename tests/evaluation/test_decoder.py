import math

import pytest
import torch

from fsae.evaluation.decoder import decoder_max_cosine
from tests.architectures import build, each_architecture


def test_by_hand():
    # The rows are at 0, 90 and 45 degrees, and lengths do not matter: the nearest row is always 45 degrees away.
    rows = torch.tensor([[2.0, 0.0], [0.0, 0.5], [3.0, 3.0]])
    assert decoder_max_cosine(rows) == pytest.approx(math.sqrt(0.5))


def test_opposite_directions_are_not_alike():
    assert decoder_max_cosine(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(-1)


def test_a_latent_is_not_its_own_neighbour_but_its_copy_is():
    rows = torch.eye(5)
    assert decoder_max_cosine(rows) == pytest.approx(0)
    assert decoder_max_cosine(torch.cat([rows, 2 * rows])) == pytest.approx(1)


@each_architecture
@pytest.mark.parametrize("chunk", [1, 4, 14, 100])
def test_chunks_change_nothing(arch, chunk):
    W_dec = build(arch, d_sae=14).W_dec.detach()
    directions = W_dec / W_dec.norm(dim=1, keepdim=True)
    cosines = directions @ directions.T - 10 * torch.eye(14)
    assert decoder_max_cosine(W_dec, chunk) == pytest.approx(cosines.amax(1).mean().item(), rel=1e-5)


def test_a_single_latent_has_no_neighbour():
    assert math.isnan(decoder_max_cosine(torch.ones(1, 3)))

"""The n-th largest projection, by hand, against sorting, and its minimum at the right l0."""

import pytest
import torch

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.evaluation.decoder_projection import DecoderProjection, nth_largest, nth_projection
from fsae.evaluation.subject import Examined, Subject
from fsae.sources.in_memory import InMemorySource
from tests.architectures import with_weights


def writing(rows: list[list[float]], b_dec: list[float] | float = 0.0) -> SparseAutoencoder:
    """An autoencoder with this decoder."""
    W_enc = torch.tensor(rows).T.tolist()
    return with_weights("standard", {"W_enc": W_enc, "W_dec": rows, "b_dec": b_dec}).eval()


@pytest.mark.parametrize("n", [1, 2, 37, 500, 999, 1000])
def test_a_number_of_any_place_is_found_without_keeping_the_numbers(n: int):
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(0)).round(decimals=2)
    numbers[:3] = torch.tensor([0.0, -0.0, 1e-40])
    expected = numbers.sort(descending=True).values[n - 1].item()
    assert nth_largest(lambda: iter(numbers.split(64)), n) == expected


def test_by_hand():
    # The rows' lengths do not count: projections of (1, 1) - (0, 1) and (3, 2) - (0, 1) are 1, 0, 0.8; 3, 1, 3.
    autoencoder = writing([[2.0, 0.0], [0.0, 3.0], [4.0, 3.0]], [0.0, 1.0])
    x = torch.tensor([[1.0, 1.0], [3.0, 2.0]])
    # n is 1, then 2 of 3 latents, for two samples: the second and the fourth of 3, 3, 1, 1, 0.8, 0.
    assert nth_projection(autoencoder, x, 1 / 3, latents_at_once=1) == pytest.approx(3)
    assert nth_projection(autoencoder, x, 2 / 3, latents_at_once=2) == pytest.approx(1)


def test_rows_that_mix_features_project_more_than_the_features_themselves():
    generator = torch.Generator().manual_seed(0)
    coefficients = (torch.rand(4096, 8, generator=generator) < 0.2).float()
    features = torch.eye(8)
    mixed = torch.nn.functional.normalize(features + 0.4 * features.roll(1, 0), dim=1)
    found = [nth_projection(writing(W.tolist()), coefficients, 0.3) for W in (features, mixed)]
    assert found[0] == 0 < found[1]


def test_measure_averages_batches_for_every_autoencoder():
    autoencoder = writing([[1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    subject = Subject([Examined([autoencoder, autoencoder])], InMemorySource(x, x, 0, x.device))
    (measured,) = DecoderProjection(samples=4, batch_size=2, share=0.25).measure(subject)
    # The second of 2, 1, 0, 0 and of 4, 3, 0, 0.
    assert measured.numbers == [{"decoder_projection": 2.0}] * 2

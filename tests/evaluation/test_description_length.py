"""Description length of codes whose bits are known."""

import math

import pytest
import torch

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.local_pca import KMeansSettings, LocalPCASettings
from fsae.autoencoders.settings import DecoderNorm
from fsae.evaluation.description_length import DescriptionLengthMetric
from fsae.evaluation.reconstruction import ReconstructionMetric
from tests.architectures import samples, with_weights

CPU = torch.device("cpu")


def bits(autoencoder: Autoencoder, x: torch.Tensor, sparse: bool = False, parts: int = 1) -> float:
    reconstruction = ReconstructionMetric(autoencoder.d_in, CPU)
    metric = DescriptionLengthMetric(autoencoder, reconstruction)
    with torch.no_grad():
        for some in x.chunk(parts):
            record = autoencoder(some, sparse)
            reconstruction.update(record)
            metric.update(record)
    return metric.compute()["description_length"]


def test_of_four_cells_it_is_whether_each_is_the_one():
    autoencoder = KMeansSettings(d_sae=4).build(1, torch.Generator()).double()
    autoencoder.set_weights(torch.tensor([[0.0], [1.0], [2.0], [3.0]]).double())
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]] * 10).double()
    # Four times H(1/4) = 2 - 3/4 log2 3; the values are all 1.
    assert bits(autoencoder, x) == pytest.approx(4 * (2 - 0.75 * math.log2(3)))


def test_that_a_cells_components_are_on_goes_without_saying():
    autoencoder = LocalPCASettings(d_sae=4, rank=1).build(2, torch.Generator()).double()
    # Two cells, each with the second axis.
    second = torch.tensor([[0.0, 1.0]]).double()
    autoencoder.set_weights(torch.tensor([[-3.0, 0.0], [3.0, 0.0]]).double(), torch.stack([second, second]))
    x = torch.tensor([[-3.0, 1.0], [-3.0, -1.0], [3.0, 1.0], [3.0, -1.0]]).double()
    # The spread is sqrt(10). Each centre takes H(1/2); a sample has one component, of deviation 1.
    wanted = 2 + 0.5 * math.log2(2 * math.pi * math.e * 64**2 / 10)
    assert bits(autoencoder, x) == pytest.approx(wanted)


def test_a_value_takes_the_bits_of_its_deviation():
    # One latent, on wherever x is positive: half of the samples; its contribution is x itself, with a decoder row of 2
    # and a code of x / 2.
    weights = {"W_enc": [[0.5]], "W_dec": [[2.0]]}
    autoencoder = with_weights("standard", weights, decoder_norm=DecoderNorm.free)
    x = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]).double()
    # Deviation 1 where it is on, spread sqrt(5): H(1/2) + 1/2 log2(2 pi e 64^2 / 5) / 2.
    wanted = 1 + 0.5 * 0.5 * math.log2(2 * math.pi * math.e * 64**2 / 5)
    assert bits(autoencoder, x) == pytest.approx(wanted)


def test_neither_the_unit_nor_the_batches_nor_the_layout_matter():
    weights = {"W_enc": samples(5, 7, seed=2).tolist(), "W_dec": samples(7, 5, seed=3).tolist()}
    autoencoder, x = with_weights("standard", weights, decoder_norm=DecoderNorm.free), samples(200)
    whole = bits(autoencoder, x)
    assert whole > 0
    assert bits(autoencoder, x, sparse=True, parts=3) == pytest.approx(whole)
    # Without biases, ten times the input has ten times the codes.
    assert bits(autoencoder, 10 * x) == pytest.approx(whole)

"""Bits of rounded codes: by hand, against a definition entry by entry, and for a code that needs no bits of values."""

import logging
import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from fsae.evaluation.mdl import BINS, Mdl, RoundedCodes, gaussian_bits
from fsae.evaluation.subject import Examined, Subject
from fsae.sources.in_memory import InMemorySource
from tests.architectures import with_weights

# It copies the first two of three dimensions.
IDENTITY = with_weights(
    "standard", {"W_enc": torch.eye(3, 2).tolist(), "W_dec": torch.eye(2, 3).tolist()}, apply_b_dec_to_input=False
).float()


def rounded(x: Tensor) -> RoundedCodes:
    x = torch.nn.functional.pad(x, (0, 1))
    return RoundedCodes(IDENTITY.eval(), x.split(3), x.split(3))


def entropy(*counts: int) -> float:
    return -sum(count / sum(counts) * math.log2(count / sum(counts)) for count in counts if count)


def test_bins_reach_from_zero_to_each_latents_largest_code():
    x = torch.tensor([[4.0, 0.0], [1.0, 0.0], [3.0, 0.2], [0.0, 0.1]])
    values, bins = rounded(x).in_bins(2)
    # Latent 0 has bins from 0 to 2 and 4, latent 1 from 0 to 0.1 and 0.2.
    assert values.tolist() == pytest.approx([3, 1, 3, 0.15, 0.05])
    assert bins.tolist() == [2, 1, 2, 2, 1]
    # Latent 0 is on in 3 of 4 samples, of which 2 have one bin; latent 1 in 2 of 4, with a bin each.
    bits = entropy(3, 1) + 3 / 4 * entropy(2, 1) + entropy(2, 2) + 2 / 4 * entropy(1, 1)
    assert rounded(x).entropy(bins) == pytest.approx(bits)
    # The first and the third sample: both have latent 0 in one bin, and one has latent 1.
    assert rounded(x).entropy(bins, half=0) == pytest.approx(entropy(1, 1))


def test_the_error_is_that_of_rounded_codes():
    x = torch.tensor([[4.0, 0.0], [1.0, 0.0], [3.0, 0.2], [0.0, 0.1]])
    codes = rounded(x)
    variance = (x - x.mean(0)).square().sum().item()
    assert codes.fvu(codes.in_bins(2)[0]) == pytest.approx((1 + 2 * 0.05**2) / variance)
    assert codes.fvu(codes.values) == 0
    spread = math.sqrt(variance / 4)
    assert codes.in_steps(1 / spread).tolist() == pytest.approx([4, 1, 3, 0, 0], abs=1e-6)


def test_normal_values_take_the_bits_of_their_deviation():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    codes, spread = rounded(x), (torch.cov(x.T, correction=0).trace()).sqrt().item()
    # Latent 0 has a deviation of 1 while it is on, latent 1 of none.
    value = 0.5 * math.log2(2 * math.pi * math.e / (0.25 * spread) ** 2)
    assert codes.normal_bits(0.25) == pytest.approx(2 * entropy(1, 1) + 0.5 * value, rel=1e-5)


def test_a_normal_variable_takes_half_the_logarithm_of_its_variance_over_the_error():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T, correction=0))).T
    x = x * torch.tensor([4.0, 2.0, 0.1], dtype=torch.float64)
    # Variances are 16, 4 and 0.01; an error of 2.01 is a level of 1 for the first two, and the third is left out.
    assert gaussian_bits(x, 2.01 / 20.01) == pytest.approx(0.5 * math.log2(16) + 0.5 * math.log2(4), rel=1e-6)


def measured(x: Tensor, **settings: float) -> dict[str, float]:
    # The third dimension, which no code explains, leaves an error.
    x = torch.cat([x, 0.3 * torch.randn(len(x), 1, generator=torch.Generator().manual_seed(1))], dim=1)
    subject = Subject([Examined([IDENTITY.eval()])], InMemorySource(x, x, 0, x.device))
    (found,) = Mdl(samples=len(x), batch_size=64, **settings).measure(subject)  # pyright: ignore[reportArgumentType]
    (numbers,) = found.numbers
    assert numbers.keys() == Mdl.meanings.keys()
    assert found.content["mdl_curves"]["bins"] == list(BINS[: len(found.content["mdl_curves"]["bins"])])
    return numbers


def test_codes_with_one_value_take_the_bits_of_their_places_alone(caplog: pytest.LogCaptureFixture):
    x = (torch.rand(256, 2, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    with caplog.at_level(logging.INFO):
        numbers = measured(x)
    assert "rounding codes: 1 of 1 dictionaries (100 %)" in caplog.text
    share = x.mean(0).tolist()
    exact = sum(entropy(round(256 * p), 256 - round(256 * p)) for p in share)
    assert numbers["mdl_bits"] == pytest.approx(exact, rel=1e-5)
    assert numbers["mdl_bits_normal"] == pytest.approx(exact, rel=1e-5)
    assert numbers["mdl_bits_noise"] < 0.2


def test_less_error_takes_more_bits_and_every_entry_counts_once():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 2, generator=generator).relu() - 0.05 * torch.rand(256, 2, generator=generator)
    coarse, fine = measured(x, tolerance=1.0), measured(x, tolerance=0.01)
    assert coarse["mdl_bins"] < fine["mdl_bins"]
    assert coarse["mdl_bits"] < fine["mdl_bits"]
    assert coarse["mdl_bits_pca"] < fine["mdl_bits_pca"]
    assert fine["mdl_fvu"] < coarse["mdl_fvu"]
    codes = rounded(x)
    bins = codes.in_bins(int(fine["mdl_bins"]))[1]
    joint = Counter(zip(codes._pattern.columns.tolist(), bins.tolist(), strict=True))
    bits = 0.0
    for latent in range(2):
        counts = [count for (column, _), count in joint.items() if column == latent]
        bits += entropy(sum(counts), 256 - sum(counts)) + sum(counts) / 256 * entropy(*counts)
    assert fine["mdl_bits"] == pytest.approx(bits)

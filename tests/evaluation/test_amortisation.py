"""The error that an encoder adds: by hand, planted, and on known features."""

import logging

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.layout import Ends, Layout, blocks_per_layer
from fsae.evaluation.amortisation import Amortisation, code_correlation, search
from fsae.evaluation.subject import Examined, Subject
from fsae.matching import unit_rows
from fsae.sources.in_memory import InMemorySource
from fsae.sources.synthetic.sparse_sources import SparseSourcesSettings
from tests.architectures import settings_of, with_weights

CPU = torch.device("cpu")


def test_values_of_one_latent_are_right_after_one_step():
    # The best multiple of (1, 0) for (2, 1) is 2, with an error of 1.
    codes, errors = search(
        torch.tensor([[2.0, 1.0]]), torch.eye(2), torch.tensor([[0.5, 0.0]]), torch.tensor([1]), steps=2, keep=True
    )
    torch.testing.assert_close(codes, torch.tensor([[2.0, 0.0]]))
    assert errors.flatten().tolist() == pytest.approx([1.5**2 + 1, 1, 1])


def test_a_better_latent_replaces_a_wrong_one():
    x, W = torch.tensor([[0.0, 3.0]]), torch.eye(2)
    codes, errors = search(x, W, torch.tensor([[0.1, 0.0]]), torch.tensor([1]), steps=40)
    torch.testing.assert_close(codes, torch.tensor([[0.0, 3.0]]))
    assert errors[-1].item() == pytest.approx(0, abs=1e-6)


def test_errors_never_rise_and_no_sample_has_more_latents_than_it_may():
    generator = torch.Generator().manual_seed(0)
    x, W = torch.randn(20, 8, generator=generator), unit_rows(torch.randn(30, 8, generator=generator))
    active = torch.tensor([0, 1, 2, 3, 5] * 4)
    for signed in (False, True):
        codes, errors = search(x, W, torch.zeros(20, 30), active, steps=50, signed=signed)
        assert (errors.diff(dim=0) <= 0).all()
        assert ((codes != 0).sum(1) <= active).all()
        assert (codes < 0).any() == signed
        torch.testing.assert_close((x - codes @ W).square().sum(1), errors[-1], atol=1e-4, rtol=1e-4)


def test_correlation_of_codes_with_the_truth_ignores_order_scale_and_what_is_never_on():
    true = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    codes = torch.cat([5 * true[:, [2, 0, 1]], torch.zeros(50, 2)], dim=1)
    assert code_correlation(codes, torch.cat([true, torch.zeros(50, 4)], dim=1)) == pytest.approx(1, abs=1e-5)


def measured(x: Tensor, W_enc: Tensor, b_enc: list[float], W_dec: Tensor, **settings: int) -> dict[str, float]:
    weights = {"W_enc": W_enc.tolist(), "W_dec": W_dec.tolist(), "b_enc": b_enc}
    autoencoder = with_weights("standard", weights, apply_b_dec_to_input=False).float().eval()
    subject = Subject([Examined([autoencoder])], InMemorySource(x, x, 0, CPU))
    (found,) = Amortisation(samples=len(x), batch_size=16, **settings).measure(subject)
    (numbers,) = found.numbers
    assert numbers.keys() <= Amortisation.meanings.keys()
    assert len(found.content["amortisation_curves"]["fvu_after_steps"]) == 1 + settings["steps"]
    return numbers


def test_the_gap_is_zero_for_a_right_encoder_and_the_whole_error_for_wrong_values():
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    x = x * (x > 0.5)
    right = measured(x, torch.eye(4), [0.0] * 4, torch.eye(4), steps=3)
    assert right["amortisation_gap"] == right["amortisation_fvu"] == 0
    # Codes are half of what they should be, with the right latents on.
    halved = measured(x, 0.5 * torch.eye(4), [0.0] * 4, torch.eye(4), steps=10)
    error = (0.25 * x.square().sum() / (x - x.mean(0)).square().sum()).item()
    assert halved["amortisation_gap"] == pytest.approx(error, rel=1e-4)
    assert halved["amortisation_values"] == pytest.approx(error, rel=1e-4)
    assert halved["amortisation_fvu"] == pytest.approx(0, abs=1e-6)
    # The encoder confuses two latents with the two others, which no change of values helps.
    confused = measured(x, torch.eye(4)[[1, 0, 3, 2]], [0.0] * 4, torch.eye(4), steps=60)
    assert confused["amortisation_values"] < 0.6 * confused["amortisation_gap"]
    assert confused["amortisation_fvu"] < 0.01


def test_controls_write_what_the_latents_write():
    # One latent is on and writes one part of two, so the smaller part is left: squares of 1, 4, 4 and 1. Both parts
    # have a variance of 1.25, so the fvu is 2.5 / (1.25 + 1.25).
    parts = Layout((("a", 1), ("b", 1)))
    ends = Ends(input=parts, target=parts, blocks=blocks_per_layer(2))
    autoencoder = settings_of("topk", d_sae=16, k=1).build(ends, torch.Generator().manual_seed(0)).eval()
    x = torch.tensor([[1.0, 4.0], [2.0, 3.0], [3.0, 2.0], [4.0, 1.0]])
    subject = Subject([Examined([autoencoder])], InMemorySource(x, x, 0, CPU))
    evaluation = Amortisation(samples=4, batch_size=4, steps=10, coding_rounds=5)
    (found,) = evaluation.measure(subject)
    assert found.numbers[0]["amortisation_fvu_random"] == pytest.approx(1)
    assert found.numbers[0]["amortisation_coding"] == pytest.approx(1)
    rows = evaluation.coded(x, ends.may_write(16).float(), 1)
    assert ((rows != 0).sum(1) == 1).all()


def test_optimised_codes_and_sparse_coding_are_nearer_to_known_features_than_an_encoder_is(
    caplog: pytest.LogCaptureFixture,
):
    source = SparseSourcesSettings(d_in=12, features=16, active=2).source(CPU)
    features = source.features
    # The true dictionary with its transpose as encoder, and the threshold that leaves about two latents on.
    autoencoder = with_weights(
        "standard",
        {"W_enc": features.T.tolist(), "W_dec": features.tolist(), "b_enc": [-0.5] * 16},
        apply_b_dec_to_input=False,
    )
    subject = Subject([Examined([autoencoder.float().eval()])], source)
    with caplog.at_level(logging.INFO):
        (found,) = Amortisation(samples=512, batch_size=128, steps=40, coding_rounds=60).measure(subject)
    # Four searches in each of four batches, and ten steps in each round.
    assert "searching for codes: 1,240 of 1,240 steps (100 %)" in caplog.text
    (numbers,) = found.numbers
    assert numbers["amortisation_gap"] > 5 * numbers["amortisation_gap_noise"] > 0
    assert numbers["amortisation_mcc"] > 0.85
    assert numbers["amortisation_mcc_gap"] > 0.02
    assert numbers["amortisation_fvu"] < 0.5 * numbers["amortisation_fvu_random"]
    assert numbers["amortisation_coding"] < 0.9 * numbers["amortisation_fvu_random"]
    assert numbers["amortisation_coding_mcc"] > 0.5

"""Outcomes and gradients of a linear model, and the completeness of integrated gradients."""

import pytest
import torch

from fsae.evaluation.causal.passes import Reader
from fsae.evaluation.causal.prompts import Predictions
from tests.evaluation.causal.toy import BETWEEN, EARLY, LATE, UNEMBEDDING, LinearModel, pairs, reader

CLEAN = pairs().clean


def test_the_outcome_is_the_difference_of_the_answers_logits():
    logits = LinearModel().logits(CLEAN.tokens)[:, -1]
    rows = torch.arange(len(CLEAN))
    wanted = logits[rows, CLEAN.right] - logits[rows, CLEAN.wrong]
    torch.testing.assert_close(reader().outcomes(CLEAN), wanted.float())


def test_gradients_are_total_ones():
    """The late gradient is the unembedding's; the early one also has the path through the late site."""
    signs = (UNEMBEDDING[:, CLEAN.right] - UNEMBEDDING[:, CLEAN.wrong]).T
    at, gradients = reader().gradients(CLEAN, [EARLY, LATE])
    assert set(at) == set(gradients) == {EARLY, LATE}
    torch.testing.assert_close(gradients[LATE][:, -1], signs)
    assert not gradients[LATE][:, :-1].any()
    through_the_mean = signs @ BETWEEN.T / 3
    torch.testing.assert_close(gradients[EARLY][:, 0], through_the_mean)
    torch.testing.assert_close(gradients[EARLY][:, -1], signs + through_the_mean)
    # Read one after the other, sites have the same gradients.
    torch.testing.assert_close(reader().gradients(CLEAN, [EARLY])[1][EARLY], gradients[EARLY])


def test_integrated_gradients_are_complete():
    """The probability is not linear in the activations: the gradient at one end does not give the difference."""
    predictions = Predictions(CLEAN.tokens, CLEAN.right)
    passes = Reader(LinearModel(), 3)
    end = passes.activations(predictions, [EARLY])[EARLY]
    begin = torch.zeros_like(end)
    difference = passes.outcomes(predictions) - passes.outcomes(predictions, lambda rows: {EARLY: torch.zeros_like})
    at_the_end = (passes.gradients(predictions, [EARLY])[1][EARLY] * end).sum((1, 2))
    assert (at_the_end - difference).abs().max() > 0.04
    errors = []
    for steps in (5, 10):
        mean = passes.integrated_gradient(predictions, EARLY, begin, end, steps)
        errors.append(((mean * end).sum((1, 2)) - difference).abs().max().item())
    assert errors[1] < 1e-3
    # The error of midpoints falls with the square of the number of steps.
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_a_heartbeat_precedes_each_pass_and_prompts_are_counted():
    beats, counted = [], []
    passes = Reader(LinearModel(), 3, lambda: beats.append(1), counted.append)
    passes.outcomes(CLEAN)
    passes.gradients(CLEAN, [EARLY])
    assert len(beats) == 6
    assert counted == [3, 3, 2, 3, 3, 2]

"""Scores against known features, by hand."""

import pytest
import torch

from fsae.evaluation.truth import evaluate_truth
from fsae.sources.source import Batch
from tests.architectures import with_weights

# Latents 0 and 1 read dimensions 0 and 1 and write features 0 and 1; latent 2 writes feature 0 too and is never on.
WEIGHTS = {
    "W_enc": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]],
    "W_dec": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.8, 0.0, 0.6]],
}


def test_by_hand():
    autoencoder = with_weights("standard", WEIGHTS, apply_b_dec_to_input=False).eval()
    features = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    # Feature 0 is where latent 0 is; feature 1 is missed in the third sample's stead and there in the last.
    present = torch.tensor([[True, False], [True, True], [False, False], [False, True]])
    batches = [Batch(x[:2], x[:2]), Batch(x[2:], x[2:])]
    (metric,) = evaluate_truth([autoencoder], features, batches, present.split(2))
    assert metric.compute() == pytest.approx(
        {
            "mcc": 1.0,
            "mmcs_truth": 1.0,
            "mmcs_latents": (1 + 1 + 0.8) / 3,
            # The latents are nearest to features 0, 1 and 0: both of the two.
            "uniqueness": 1.0,
            # Latent 0: always right. Latent 1: on twice, once rightly; its feature is there twice.
            "precision": (1 + 0.5) / 2,
            "recall": (1 + 0.5) / 2,
            "f1": (1 + 0.5) / 2,
        }
    )
    assert metric.nearest_cosine.tolist() == pytest.approx([1, 1, 0.8])


def test_a_latent_that_never_fires_scores_nothing():
    autoencoder = with_weights("standard", WEIGHTS, apply_b_dec_to_input=False).eval()
    features = torch.tensor([[0.8, 0.0, 0.6]], dtype=torch.float64)
    x = torch.ones(2, 3, dtype=torch.float64)
    (metric,) = evaluate_truth([autoencoder], features, [Batch(x, x)], [torch.ones(2, 1, dtype=torch.bool)])
    scores = metric.compute()
    assert (scores["mcc"], scores["precision"], scores["recall"], scores["f1"]) == pytest.approx((1, 0, 0, 0))

"""Scores against known features, by hand."""

import pytest
import torch

from fsae.evaluation.agreement import Shared, truth_by_sharing
from fsae.evaluation.truth import evaluate_truth
from fsae.sparse.codes import Codes
from tests.architectures import with_weights

# Latents 0 and 1 read dimensions 0 and 1 and write features 0 and 1; latent 2 writes feature 0 too and is never on.
WEIGHTS = {
    "W_enc": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]],
    "b_enc": [-0.5, -0.5, 0.0],
    "W_dec": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.8, 0.0, 0.6]],
}


def test_by_hand():
    autoencoder = with_weights("standard", WEIGHTS, apply_b_dec_to_input=False).eval()
    # The third feature never occurs, so no latent can find it.
    features = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    # Feature 0 is there twice and large enough to be seen; feature 1 three times, once too weak (0.3 < 0.5).
    coefficients = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0.1, 0], [0, 1, 0]], dtype=torch.float64)
    batches = [Codes(part) for part in coefficients.split(2)]
    (truth,) = evaluate_truth([autoencoder], features, batches, lambda codes: codes.decode(features))
    assert truth.scalars == pytest.approx(
        {
            # The best one-to-one assignment of three latents and two features.
            "mcc": 1.0,
            "mmcs_truth": 1.0,
            "mmcs_latents": (1 + 1 + 0.8) / 3,
            # Nearest to the latents are features 0, 1 and 0.
            "uniqueness": 2 / 3,
            # Latents 0 and 1 are right whenever they are on; the third is never on.
            "precision": (1 + 1 + 0) / 3,
            "recall": (1 + 2 / 3 + 0) / 3,
            "f1": (1 + 2 * 2 / (2 + 3) + 0) / 3,
            "true_l0": 5 / 4,
        }
    )
    assert truth.nearest_cosine.tolist() == pytest.approx([1, 1, 0.8])


def test_truth_of_features_that_are_shared_and_of_others():
    # The last latent of the second member never fires.
    found_by = torch.tensor([[2, 1, 1], [2, 1, 0]])
    closest = torch.tensor([[0.9, 0.1, 0.3], [0.8, 0.2, 0.99]])
    cosines = torch.tensor([[0.9, 0.1, 0.3], [0.7, 0.2, 0.0]])
    assert truth_by_sharing(Shared({}, found_by, closest), cosines) == pytest.approx(
        {"truth_of_shared": 0.8, "truth_of_single": 0.2, "truth_rank_correlation": 1}
    )


def test_equal_cosines_have_one_rank():
    found_by = torch.ones(1, 4, dtype=torch.long)
    compared = Shared({}, found_by, torch.tensor([[0.0, 0.0, 0.0, 0.5]]))
    # Ranks 2, 2, 2, 4 and 1, 2, 3, 4: from their means -0.5, -0.5, -0.5, 1.5 and -1.5, -0.5, 0.5, 1.5.
    assert truth_by_sharing(compared, torch.tensor([[0.1, 0.2, 0.3, 0.4]]))["truth_rank_correlation"] == pytest.approx(
        3 / 15**0.5
    )

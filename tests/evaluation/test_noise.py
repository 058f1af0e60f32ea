import pytest

from fsae.evaluation.noise import mean_and_noise


def test_the_noise_is_the_standard_deviation_of_one_repetition():
    # (1 + 1) / (3 - 1) around a mean of 2.
    assert mean_and_noise("auc", [1.0, 2.0, 3.0]) == {"auc": 2.0, "auc_noise": pytest.approx(1.0)}


def test_one_repetition_has_no_noise():
    assert mean_and_noise("auc", [0.5]) == {"auc": 0.5}

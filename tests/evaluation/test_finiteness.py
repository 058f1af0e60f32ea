import pytest
import torch

from fsae.evaluation.finiteness import check_finite


def test_says_how_many_and_where():
    activations = torch.zeros(4, 3)
    activations[1, 2] = torch.inf
    activations[3] = torch.nan
    with pytest.raises(ValueError, match=r"^layer 3: 4 of 12 .* in 2 of 4 vectors .* inf in vector 1, dimension 2"):
        check_finite(activations, "layer 3")


def test_finite_activations_pass():
    check_finite(torch.tensor([[1e38, -1e38, 0.0]]), "anywhere")

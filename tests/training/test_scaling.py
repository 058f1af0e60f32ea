import pytest
import torch

from fsae.training.scaling import Scale, scale_of


def test_sqrt_d_makes_the_mean_norm_the_square_root_of_the_width():
    # Norms 5 and 13, mean 9; sqrt(2) / 9.
    vectors = torch.tensor([[3.0, 4.0], [5.0, 12.0]])
    assert scale_of(vectors, Scale.sqrt_d) == pytest.approx(2**0.5 / 9)
    assert (scale_of(vectors, Scale.sqrt_d) * vectors).norm(dim=1).mean().item() == pytest.approx(2**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_holds_for_many_vectors_of_any_size_and_type(dtype: torch.dtype):
    vectors = (1e3 * torch.randn(100, 16, generator=torch.Generator().manual_seed(0))).to(dtype)
    scaled = scale_of(vectors, Scale.sqrt_d, rows_at_once=7) * vectors.double()
    assert scaled.norm(dim=1).mean().item() == pytest.approx(4.0, rel=1e-6)


def test_scale_none_leaves_vectors_as_they_are():
    assert scale_of(torch.tensor([[3.0, 4.0]]), Scale.none) == 1.0


def test_vectors_that_are_all_zero_have_no_scale():
    with pytest.raises(ValueError, match=r"every activation is zero at this site; .*trainer\.activation_scale=none"):
        scale_of(torch.zeros(3, 2), Scale.sqrt_d)

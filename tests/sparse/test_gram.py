"""The sum of squares of the Gram matrix: by either side, in slices, of any type."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fsae.sparse.codes import Codes
from fsae.sparse.gram import squared_gram_norm
from fsae.sparse.pattern import Pattern
from tests.sparse.matrices import draw, mask_with, sparse_codes


@pytest.mark.parametrize("count", [1, 2, 3])
def test_gram_gradient_is_the_same_in_slices(count: int):
    codes = sparse_codes(mask_with("empty row"))
    (whole,) = torch.autograd.grad(squared_gram_norm(codes), codes.values)
    # 5 samples in slices of 1, 2 and 3: the last slice is a short one for 2 and 3.
    (sliced,) = torch.autograd.grad(squared_gram_norm(codes, samples_at_once=count), codes.values)
    torch.testing.assert_close(sliced, whole, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", [(3, 8), (8, 3)], ids=["few samples", "few latents"])
def test_gram_of_either_shape(shape: tuple[int, int], sparse: bool):
    matrix = draw(*shape) * (draw(*shape, seed=1) > 0)
    codes = Codes(matrix) if not sparse else None
    if codes is None:
        pattern = Pattern.of_mask(matrix != 0)
        codes = Codes(matrix[pattern.rows, pattern.columns], pattern)
    codes.values.requires_grad_()
    torch.testing.assert_close(squared_gram_norm(codes), (matrix @ matrix.T).square().sum(), rtol=1e-13, atol=0)
    assert torch.autograd.gradcheck(lambda values: squared_gram_norm(codes.with_values(values)), (codes.values,))


@pytest.mark.parametrize("sparse", [False, True])
def test_gram_takes_the_smaller_side(sparse: bool):
    # 400 samples of 6 latents: nothing as large as 400 x 400 is there, and nothing of 400 x 32, a slice's table.
    matrix = draw(400, 6) * (draw(400, 6, seed=1) > 0)
    pattern = Pattern.of_mask(matrix != 0) if sparse else None
    values = matrix if pattern is None else matrix[pattern.rows, pattern.columns]
    codes = Codes(values.clone().requires_grad_(), pattern)
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Largest():
        squared_gram_norm(codes).backward()
    assert 0 < largest <= 400 * 6


def test_no_samples_have_no_gram():
    codes = Codes(torch.zeros(0), Pattern.of_mask(torch.zeros(0, 8, dtype=torch.bool)))
    assert squared_gram_norm(codes) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gram_of_short_types_is_summed_in_float32(dtype: torch.dtype):
    codes = sparse_codes(mask_with("empty row"), dtype=dtype)
    exact = codes.dense().detach().double()
    norm = squared_gram_norm(codes)
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm.double(), (exact @ exact.T).square().sum(), rtol=1e-6, atol=1e-6)
    norm.backward()
    assert codes.values.grad is not None
    assert codes.values.grad.dtype == dtype

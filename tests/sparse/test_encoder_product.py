"""The encoder's product, whole or at a pattern."""

import pytest
import torch
from torch import Tensor

from fsae.sparse.encoder_product import encoder_product
from fsae.sparse.pattern import Pattern
from tests.sparse.matrices import BATCH, D_IN, WIDTH, draw, each_case, mask_with


@each_case
def test_gradcheck_of_the_encoder_product(case: str):
    mask = mask_with(case)
    x = draw(mask.shape[0], D_IN, seed=1).requires_grad_()
    centre = draw(D_IN, seed=4).requires_grad_()
    W_enc = draw(WIDTH, D_IN, seed=2).T.requires_grad_()
    pattern = Pattern.of_mask(mask)
    for select in (None, lambda _: pattern):
        assert torch.autograd.gradcheck(
            lambda x, c, W, s=select: encoder_product(x, c, W, s).dense(), (x, centre, W_enc)
        )
        assert torch.autograd.gradcheck(lambda x, W, s=select: encoder_product(x, None, W, s).dense(), (x, W_enc))


@pytest.mark.parametrize("sparse", [False, True])
def test_encoder_gradient_lies_in_memory_as_the_weights_do(sparse: bool):
    W_enc = draw(WIDTH, D_IN).T.requires_grad_()
    x = draw(BATCH, D_IN, seed=1)
    codes = encoder_product(x, None, W_enc, (lambda products: Pattern.of_mask(products > 0)) if sparse else None)
    (grad,) = torch.autograd.grad(codes.values.square().sum(), W_enc)
    assert W_enc.stride() == (1, D_IN)
    assert grad.stride() == W_enc.stride()


def test_select_sees_the_product_and_no_gradient():
    x, W_enc = draw(BATCH, D_IN), draw(D_IN, WIDTH, seed=1).requires_grad_()
    seen = []

    def select(products: Tensor) -> Pattern:
        seen.append(products)
        return Pattern.of_mask(products > 1)

    codes = encoder_product(x, None, W_enc, select)
    torch.testing.assert_close(seen[0], (x @ W_enc).detach())
    assert not seen[0].requires_grad
    torch.testing.assert_close(codes.dense(), torch.where(seen[0] > 1, seen[0], 0.0))

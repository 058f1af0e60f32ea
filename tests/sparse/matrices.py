"""Small matrices, dense and sparse, at the edges of what there can be."""

import pytest
import torch
from torch import Tensor

from fsae.sparse.codes import Codes
from fsae.sparse.pattern import Pattern

BATCH, WIDTH, D_IN = 5, 7, 4


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def mask_with(case: str) -> Tensor:
    mask = draw(BATCH, WIDTH, seed=3) > 0.2
    match case:
        case "empty row":
            mask[2] = False
        case "empty ends":
            mask[0] = mask[-1] = False
        case "empty column":
            mask[:, 3] = False
        case "nothing":
            mask[:] = False
        case "everything":
            mask[:] = True
        case "one sample":
            mask = mask[:1]
    return mask


CASES = ["empty row", "empty ends", "empty column", "nothing", "everything", "one sample"]
each_case = pytest.mark.parametrize("case", CASES)


def sparse_codes(mask: Tensor, dtype: torch.dtype = torch.float64) -> Codes:
    pattern = Pattern.of_mask(mask)
    return Codes(draw(pattern.columns.shape[0], seed=5, dtype=dtype).requires_grad_(), pattern)


def unsorted_codes() -> Codes:
    """Two entries a row, columns in no order, as topk returns them."""
    indices = torch.tensor([[6, 0], [3, 5], [5, 2], [1, 0], [6, 3]])
    return Codes(draw(10, seed=6).requires_grad_(), Pattern.of_indices(indices, WIDTH))

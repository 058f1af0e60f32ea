"""The GPU's kernels: the same numbers as torch's operators give. Without a GPU Triton's interpreter runs them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fsae.losses.fisher import FisherEstimator, FisherForm, fisher_sums
from fsae.sparse import products
from fsae.sparse.codes import Codes
from fsae.sparse.encoder_product import encoder_product
from fsae.sparse.gram import squared_gram_norm
from fsae.sparse.pattern import Pattern
from tests.architectures import build, each_architecture, gradients, samples

pytest.importorskip("triton")
triton_products = pytest.importorskip("fsae.sparse.triton_products")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Nothing goes into tiles: 200 dimensions come in tiles of 128, bags of up to 70 rows in tiles of 32.
D = 200
BAGS = [70, 0, 1, 33, 0]
TYPES = [torch.float64, torch.float32, torch.bfloat16]


def draw(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def tolerance(dtype: torch.dtype) -> dict[str, Any]:
    """Rounding of the result, and of sums of some hundred numbers about 1 in float32 at least."""
    return {"rtol": 8 * torch.finfo(dtype).eps, "atol": 1e-12 if dtype is torch.float64 else 1e-4}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_sums_of_rows(dtype: torch.dtype):
    starts = torch.tensor([0, *BAGS], device=DEVICE).cumsum(0)
    ids = torch.randint(0, 9, (sum(BAGS),), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    table, weights = draw(9, D, seed=1, dtype=dtype), draw(sum(BAGS), seed=2, dtype=dtype)
    sums = triton_products.sum_rows(table, ids, starts, weights)
    exact = torch.stack(
        [
            (weights[begin:end, None].double() * table[ids[begin:end]].double()).sum(0)
            for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        ]
    )
    assert sums.dtype == dtype
    torch.testing.assert_close(sums.double(), exact, **tolerance(dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("entries", [0, 1, 75])
def test_samples_of_rows(entries: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randint(0, 9, (entries,), generator=generator).to(DEVICE) for _ in range(2))
    X, W = draw(9, D, seed=1, dtype=dtype), draw(9, D, seed=2, dtype=dtype)
    values = triton_products.sample_rows(X, W, rows, columns)
    exact = (X[rows].double() * W[columns].double()).sum(1)
    assert values.dtype == dtype
    torch.testing.assert_close(values.double(), exact, **tolerance(dtype))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything sparse goes through the kernels."""
    monkeypatch.setattr(products, "_has_kernels", lambda tensor: True)


@pytest.mark.parametrize(("batch", "d_sae"), [(3, 5), (5, 3)])
def test_gradcheck(batch: int, d_sae: int, kernels: None):
    pattern = Pattern.of_mask(draw(batch, d_sae, seed=0, dtype=torch.float64) > 0)
    values = draw(len(pattern.columns), seed=1, dtype=torch.float64).requires_grad_()
    W, X = (draw(count, 3, seed=count, dtype=torch.float64).requires_grad_() for count in (d_sae, batch))
    codes = Codes(values, pattern)
    assert torch.autograd.gradcheck(lambda values, W: codes.with_values(values).decode(W), (values, W))
    assert torch.autograd.gradcheck(lambda values: squared_gram_norm(codes.with_values(values)), (values,))
    assert torch.autograd.gradcheck(lambda X, W: codes.sample(X, W).dense(), (X, W))
    assert torch.autograd.gradcheck(
        lambda X, W: encoder_product(X, None, W.T, lambda products: pattern).dense(), (X, W)
    )


def test_weights_that_are_one_number_expanded(kernels: None):
    # As the gradient of a sum is: it has a stride of 0, which no kernel knows of.
    pattern = Pattern.of_mask(draw(4, 6, seed=0, dtype=torch.float64) > 0)
    W, X = (draw(count, 3, seed=count, dtype=torch.float64).requires_grad_() for count in (6, 4))
    codes = Codes(torch.ones((), device=DEVICE, dtype=torch.float64).expand(len(pattern.columns)), pattern)
    torch.testing.assert_close(codes.decode(W), codes.dense() @ W)
    (gradient,) = torch.autograd.grad(codes.sample(X, W).values.sum(), X)
    torch.testing.assert_close(gradient, codes.dense() @ W)


@each_architecture
def test_every_architecture_trains_as_with_dense_products(arch: str, kernels: None):
    def gradients_with(sparse: bool) -> dict[str, Tensor]:
        autoencoder = build(arch, 5, 12).to(DEVICE)
        record = autoencoder(samples(7, 5).to(DEVICE), sparse=sparse)
        penalty = fisher_sums(record, FisherForm.reconstruction, FisherEstimator.batch).off_diagonal
        return gradients((record.inputs - record.reconstruction).square().sum() + penalty, autoencoder)

    torch.testing.assert_close(gradients_with(sparse=True), gradients_with(sparse=False), rtol=1e-9, atol=1e-10)

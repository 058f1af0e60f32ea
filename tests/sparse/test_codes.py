"""Dense and sparse codes give the same products and gradients."""

import warnings

import pytest
import torch
from torch import Tensor

from fsae.sparse import codes as codes_module
from fsae.sparse import gram
from fsae.sparse.codes import Codes
from fsae.sparse.gram import add_gram, squared_gram_norm
from fsae.sparse.pattern import Pattern
from tests.sparse.matrices import BATCH, D_IN, WIDTH, draw, each_case, mask_with, sparse_codes, unsorted_codes


def test_products_by_hand():
    codes = Codes(
        torch.tensor([2.0, -1.0, 3.0]), Pattern.of_mask(torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]).bool())
    )
    W = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert codes.dense().tolist() == [[2, 0, -1], [0, 0, 0], [0, 3, 0]]
    # 2 [1 2] - [5 6] = [-3 -2];  nothing;  3 [3 4] = [9 12]
    assert codes.decode(W).tolist() == [[-3, -2], [0, 0], [9, 12]]
    X = torch.tensor([[1.0, 0.0], [7.0, 7.0], [1.0, 1.0]])
    # (0,0): [1 0].[1 2] = 1;  (0,2): [1 0].[5 6] = 5;  (2,1): [1 1].[3 4] = 7
    assert codes.sample(X, W).values.tolist() == [1, 5, 7]
    # Rows share no column, so only the diagonal is left: 4 + 1 and 9.
    # The Gram matrix is [[5 0 0], [0 0 0], [0 0 9]]: 25 + 81.
    assert squared_gram_norm(codes) == 106
    assert codes.column_sums().tolist() == [2, 3, -1]
    assert codes.row_sums().tolist() == [1, 0, 3]
    assert codes.columns(torch.tensor([10.0, 20.0, 30.0])).tolist() == [10, 30, 20]


def test_blocks_by_hand():
    codes = Codes(
        torch.tensor([2.0, -1.0, 3.0]), Pattern.of_mask(torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]).bool())
    )
    W = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    # 2 [1 2] from latent 0, 3 [3 4] from latent 1; -1 [5 6] is beyond the last end.
    assert codes.decode_blocks(W, [1, 2]).tolist() == [[[2, 4], [0, 0], [0, 0]], [[0, 0], [0, 0], [9, 12]]]


@each_case
@pytest.mark.parametrize(
    "product", ["decode", "decode_blocks", "sample", "squared_gram_norm", "column_sums", "row_sums", "columns", "map"]
)
def test_sparse_products_and_gradients_are_the_dense_ones(case: str, product: str):
    sparse = sparse_codes(mask_with(case))
    mask = mask_with(case)
    batch = mask.shape[0]
    leaf = sparse.dense().detach().requires_grad_()
    dense = Codes(leaf)
    W, X, v = (
        draw(WIDTH, D_IN).requires_grad_(),
        draw(batch, D_IN, seed=1).requires_grad_(),
        draw(WIDTH).requires_grad_(),
    )

    def result(codes: Codes) -> Tensor:
        match product:
            case "decode":
                return codes.decode(W)
            case "decode_blocks":
                return codes.decode_blocks(W, [1, 1, WIDTH // 2, WIDTH - 1])
            case "sample":
                sampled = codes.sample(X, W)
                return sampled.with_values(sampled.values * codes.values).dense()
            case "squared_gram_norm":
                return squared_gram_norm(codes)
            case "column_sums":
                return codes.column_sums()
            case "row_sums":
                return codes.row_sums()
            case "columns":
                return codes.with_values(codes.values * codes.columns(v)).dense()
            case _:
                return codes.map(torch.square).dense()

    ours, wanted = result(sparse), result(dense)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    weights = draw(*wanted.shape, seed=9)
    others = [W, X, v]
    got = torch.autograd.grad(
        (ours * weights).sum(), [sparse.values, *others], materialize_grads=True, allow_unused=True
    )
    want = torch.autograd.grad((wanted * weights).sum(), [leaf, *others], materialize_grads=True, allow_unused=True)
    torch.testing.assert_close(got[0], want[0][mask], rtol=1e-12, atol=1e-12)
    for one, other in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@each_case
def test_gradcheck_of_decode_sample_and_gram(case: str):
    codes = sparse_codes(mask_with(case))
    W = draw(WIDTH, D_IN).requires_grad_()
    X = draw(codes.shape[0], D_IN, seed=1).requires_grad_()
    if codes.values.numel():
        assert torch.autograd.gradcheck(lambda values, W: codes.with_values(values).decode(W), (codes.values, W))
        assert torch.autograd.gradcheck(lambda values: squared_gram_norm(codes.with_values(values)), (codes.values,))
    else:
        assert torch.autograd.gradcheck(lambda W: codes.decode(W), (W,))
        assert squared_gram_norm(codes) == 0
    assert torch.autograd.gradcheck(lambda X, W: codes.sample(X, W).dense(), (X, W))


def test_gradcheck_with_columns_in_no_order():
    codes = unsorted_codes()
    W, X = draw(WIDTH, D_IN).requires_grad_(), draw(BATCH, D_IN, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda values, W: codes.with_values(values).decode(W), (codes.values, W))
    assert torch.autograd.gradcheck(lambda values: squared_gram_norm(codes.with_values(values)), (codes.values,))
    assert torch.autograd.gradcheck(lambda X, W: codes.sample(X, W).dense(), (X, W))
    torch.testing.assert_close(squared_gram_norm(codes), (codes.dense() @ codes.dense().T).square().sum())


@each_case
@pytest.mark.parametrize("slices", [1, 3, 4, 7])
@pytest.mark.parametrize("mkl", [True, False])
def test_gram_over_the_latents(case: str, slices: int, mkl: bool, monkeypatch: pytest.MonkeyPatch):
    if not mkl:
        monkeypatch.setattr(gram, "has_sparse_product", lambda tensor: False)
    codes = sparse_codes(mask_with(case))
    dense = codes.dense().detach()
    begun = draw(WIDTH, WIDTH, seed=8)
    for each in (codes, Codes(dense)):
        total = begun.clone()
        add_gram(each, total, slices)
        torch.testing.assert_close(total.triu(), (begun + dense.T @ dense).triu(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gram_over_the_latents_with_columns_in_no_order(dtype: torch.dtype):
    codes = Codes(unsorted_codes().values.to(dtype), unsorted_codes().pattern)
    dense, total = codes.dense().detach().double(), torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    add_gram(codes, total)
    torch.testing.assert_close(total.triu(), (dense.T @ dense).triu(), rtol=1e-14, atol=1e-14)


@each_case
@pytest.mark.parametrize("mkl", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [1, 2, 100])
def test_transposed_products_are_added_in_the_type_of_the_sum(
    case: str, mkl: bool, dtype: torch.dtype, samples: int, monkeypatch: pytest.MonkeyPatch
):
    if not mkl:
        monkeypatch.setattr(codes_module, "has_sparse_product", lambda tensor: False)
    codes = sparse_codes(mask_with(case), dtype=dtype)
    X, begun = draw(codes.shape[0], D_IN).to(dtype), draw(WIDTH, D_IN, seed=8)
    wanted = begun + codes.dense().detach().double().T @ X.double()
    for each in (codes, Codes(codes.dense().detach())):
        total = begun.clone()
        each.add_transposed_product(total, X, samples * D_IN)
        torch.testing.assert_close(total, wanted, rtol=1e-13, atol=1e-13)


def test_sparse_products_log_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = sparse_codes(mask_with("empty row"))
        squared_gram_norm(codes).backward()
        add_gram(codes, torch.zeros(WIDTH, WIDTH))


def test_the_codes_of_some_latents_are_columns_of_all():
    matrix = torch.tensor([[0.0, 2.0, 0.0, -1.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0]])
    pattern = Pattern.of_mask(matrix != 0)
    latents = torch.tensor([3, 1])
    for codes in (Codes(matrix), Codes(matrix[matrix != 0], pattern)):
        assert torch.equal(codes.of_latents(latents), matrix[:, [3, 1]])
        assert codes.of_latents(latents[:0]).shape == (3, 0)
